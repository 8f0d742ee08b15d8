"""What the README says of the three questions: tables, and sentences with paired errors."""

from __future__ import annotations

import math
from typing import Any

import torch

from benchmarks import tables
from benchmarks.uses import few, missing, topics
from benchmarks.uses.common import Row, mean_and_error

Rows = dict[str, Row]


def block(result: dict[str, Any], folder: str) -> str:
    """How it was measured, then a table, sentences and a picture for each question."""
    told = result["machine"]
    quick = "**Quick settings, not to be quoted.** " if result["quick"] else ""
    parts = [
        tables.wrapped(
            f"{quick}`python -m benchmarks.uses` on {result['date']}: {told['cpu']}, "
            f"{told['cores']} cores shared with other work, {result['threads']} "
            f"thread{'s' * (result['threads'] > 1)}, torch {result['versions']['torch']}. Errors "
            f"are standard errors over test data. Measured at {_commits(result)}."
        )
    ]
    parts += of_missing(result["missing"], folder)
    parts += of_topics(result["topics"], result["text"], folder)
    parts += of_few(result["few"])
    return "\n\n".join(parts)


def of_missing(rows: Rows, folder: str) -> list[str]:
    """Hidden pixels."""
    body = [
        [
            name,
            f"{row['epochs_run']} of {row['num_train']:,}" if "epochs_run" in row else "",
            f"{row['rmse']:.4f} +- {row['rmse_se']:.4f}",
            f"{row['brier']:.4f} +- {row['brier_se']:.4f}",
            f"{row['log_loss']:.4f} +- {row['log_loss_se']:.4f}",
        ]
        for name, row in rows.items()
    ]
    count = next(iter(rows.values()))["num_data"]
    columns = ["prediction of hidden pixels", "epochs, images", "RMSE", "Brier", "log loss, nats"]
    title = (
        f"Half of all pixels hidden (preset `missing_mnist`), {count:,} MNIST test images, known "
        "pixels excluded"
    )
    best = min(rows, key=lambda name: rows[name]["brier"])
    other = "probabilistic PCA"
    said = []
    for name, against in (
        (best, other),
        (best, "mean of each pixel"),
        *((f"{g}, weighted", f"{g}, mean of draws") for g in missing.GUIDES),
        tuple(f"{g}, weighted" for g in reversed(list(missing.GUIDES)[1:])),
    ):
        if name in rows and against in rows and name != against:
            said.append(f"{name} less {against} {_paired(rows, name, against, 'each')}")
    sentence = (
        "A VAE's prediction is p(x|z) at one draw of q(z | known), its mean over "
        f"{missing.NUM_DRAWS} draws, or that weighted by p(known, z) / q(z | known), which tends "
        "to p(hidden | known) (MIWAE, arXiv:1812.02633). PCA: "
        f"{missing.PPCA_LATENT} components, {missing.PPCA_STEPS} steps of EM on "
        f"{missing.PPCA_ROWS:,} training images, their hidden pixels unseen, too. For the log "
        f"loss all probabilities are held within [{missing.LEAST}, {1 - missing.LEAST}]. Paired "
        f"by image, Brier: {'; '.join(said)}."
    )
    picture = f"![Digits, what is known of them, and what is imputed]({folder}/uses-imputed.png)"
    return [
        tables.markdown(tables.Table(title, columns, body, [])),
        tables.wrapped(sentence),
        picture,
    ]


def of_topics(rows: Rows, text: str, folder: str) -> list[str]:
    """Bags of words."""
    body = []
    for name, row in rows.items():
        several = row.get("total_variation")
        body.append(
            [
                name,
                f"{row['perplexity']:.1f} +- {row['perplexity_se']:.1f}",
                f"{row['bound_perplexity']:.1f}" if "bound_perplexity" in row else "",
                f"{row['flagged']:.0%}" if "flagged" in row else "",
                f"{row['chains_perplexity']:.1f} (importance {row['importance_there']:.1f})"
                if "chains_perplexity" in row
                else "",
                f"{sum(t < 0.2 for t in several)} of {len(several)}" if several else "",
                f"{sum(several) / len(several):.2f}, {max(several):.2f}" if several else "",
                f"{sum(row['cosine']) / len(several):.2f}, {min(row['cosine']):.2f}"
                if several
                else "",
            ]
        )
    columns = [
        "documents, model",
        "perplexity per word",
        "by the bound",
        "flagged",
        f"by AIS, {topics.BY_CHAINS} documents",
        "topics found",
        "total variation: mean, worst",
        "cosine: mean, worst",
    ]
    made = next(row for name, row in rows.items() if name.startswith("made"))
    real = [row for name, row in rows.items() if name.startswith("real")]
    title = f"Topics (preset `topics`), {made['num_data']} held-out documents each"
    said = [
        f"{name} less {against} {_paired(rows, name, against, 'words')}"
        for name, against in (
            ("made, preset", "made, true model"),
            ("made, decoder linear", "made, preset"),
            ("made, prior dirichlet", "made, preset"),
            ("real, preset", "real, unigram"),
            ("real, decoder linear", "real, preset"),
            ("real, prior dirichlet", "real, preset"),
        )
        if name in rows and against in rows
    ]
    sentence = (
        "Made documents: 100 words of 300 on average, topics ~ Dirichlet(0.1), shares of 10 topics "
        f"~ Dirichlet(0.2). Real ones: {text}"
        + (f", on average {real[0]['num_words'] / real[0]['num_data']:.0f} words" if real else "")
        + f" of the 500 commonest; {topics.REAL_TOPICS} topics. A topic is found where its match "
        "(one to one) is within a total variation of 0.2. log p(document) by "
        f"{topics.NUM_SAMPLES:,} importance samples; that of the true model with the preset's "
        f"guide. Nats per word, paired by document: {'; '.join(said)}."
    )
    picture = f"![True topics beside those found, words of real ones]({folder}/uses-topics.png)"
    return [
        tables.markdown(tables.Table(title, columns, body, [])),
        tables.wrapped(sentence),
        picture,
    ]


def of_few(rows: Rows) -> list[str]:
    """500 images."""
    body = []
    for name, row in rows.items():
        body.append(
            [
                name,
                f"{row['num_train']}, {row['epochs_run']}"
                + (f" (best {row['best_epoch']})" if "best_epoch" in row else ""),
                f"{row['bound']:.2f}",
                f"{row['log_px']:.2f} +- {row['test_se']:.2f}",
                f"{row['mc_std_error']:.2f}"
                + (f", {row['draws_se']:.2f}" if "draws_se" in row else ""),
                f"{row['flagged']:.0%}",
                f"{row['chains']:.2f} (importance {row['importance_there']:.2f})"
                if "chains" in row
                else "",
            ]
        )
    columns = [
        "decoder",
        "images, epochs",
        "bound",
        "log p(x)",
        "error: Monte Carlo, draws of weights",
        "flagged",
        f"by AIS, {few.BY_CHAINS} images",
    ]
    count = next(iter(rows.values()))["num_data"]
    title = f"Trained on 500 images (preset `bayesian_mnist`), {count:,} MNIST test images, nats"
    said = []
    for seed in few.SEEDS:
        mine = f"bayesian, seed {seed}"
        for other in few.ROWS:
            name = f"{other}, seed {seed}"
            if name != mine and {name, mine} <= rows.keys():
                said.append(f"{mine} less {name} {_paired(rows, mine, name, 'each')}")
                if "each_chains" in rows[mine] and "each_chains" in rows[name]:
                    said[-1] += f" (by AIS {_paired(rows, mine, name, 'each_chains')})"
    sentence = (
        f"p(x | weights) by {few.NUM_SAMPLES} importance samples in every row, of the Bayesian "
        f"decoder its mean over {few.NUM_DRAWS} draws of the weights. Stopped early: 400 images, "
        f"100 for validation, patience {few.PATIENCE}. Paired by image: {'; '.join(said)}."
    )
    return [tables.markdown(tables.Table(title, columns, body, [])), tables.wrapped(sentence)]


def _paired(rows: Rows, name: str, other: str, kind: str) -> str:
    """Mean difference of two rows with its paired error."""
    if kind == "words":  # a ratio of sums: by the mean length
        length = torch.tensor(rows[name]["lengths"], dtype=torch.float64)
        difference = torch.tensor(rows[name]["each"]).double() - torch.tensor(rows[other]["each"])
        mean = float(difference.sum() / length.sum())
        error = float((difference - mean * length).std() / math.sqrt(len(length)) / length.mean())
        return f"{mean:+.3f} +- {error:.3f}"
    first, second = (torch.tensor(rows[key][kind]).double() for key in (name, other))
    mean, error = mean_and_error(first - second)
    digits = 4 if "brier" in rows[name] else 2
    return f"{mean:+.{digits}f} +- {error:.{digits}f}"


def _commits(result: dict[str, Any]) -> str:
    rows = [row for name in ("missing", "topics", "few") for row in result[name].values()]
    found = dict.fromkeys((row.get("commit") or "unknown")[:10] for row in rows)
    return f"commit{'s' * (len(found) > 1)} {', '.join(found)}"
