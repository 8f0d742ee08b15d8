"""The application: experiments, run folders and the command line. Only this imports `inference`."""
