"""What training maximises: functions of one record of draws."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from inference.errors import PairError, RequestError
from inference.pair import Pair
from inference.record import LogWeights
from inference.stopped import Scoring

# Every objective by its name: those of this package, and yours once they are defined.
OBJECTIVES: dict[str, type[Objective]] = {}


class Objective(BaseModel):
    """A function of the log-weights record, in nats per datum, larger is better.

    A subclass gives its name, by which it is found in `OBJECTIVES`, and writes `value`:

        class Capacity(Objective, name="capacity"): ...

    `optimum` says in one sentence what its optimum is. `scoring` is what its gradients need of a
    record (see `inference.particles.record_of`): `paths` through the draws, log q with its
    parameters `stopped`, or `fixed draws`, which may be discrete, too. `weighs_draws`: is it a
    function of importance weights? `enumerates`: is it linear in the log-densities, so that a
    guide's enumerated sites can be summed over? (Under `fixed draws` they are drawn.) `weighs_kl`:
    does it need KL terms by themselves? A further term may be made of `record.guide_fn` and
    `record.model_fn`, which hold the distributions of observed sites, too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    optimum: ClassVar[str] = ""
    scoring: ClassVar[Scoring] = "paths"
    weighs_draws: ClassVar[bool] = False
    enumerates: ClassVar[bool] = False
    name: str = ""
    num_particles: PositiveInt = 1

    def __init_subclass__(cls, *, name: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name:  # the field `name: Literal[name] = name`, before pydantic collects the fields
            cls.__annotations__ = {**inspect.get_annotations(cls), "name": Literal[name]}
            cls.name = name

    @classmethod
    def __pydantic_init_subclass__(cls, *, name: str = "", **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        held = OBJECTIVES.get(name)
        if held is not None and _place(held) != _place(cls):
            raise RequestError(
                f"objective '{name}' is already defined by {_place(held)}; give {_place(cls)} "
                "another name"
            )
        if name:
            OBJECTIVES[name] = cls

    @property
    def weighs_kl(self) -> bool:
        return False

    def warmup(self, steps_per_epoch: int) -> int:
        """Steps until beta is what it stays."""
        return 0

    def beta(self, step: int, steps_per_epoch: int) -> float:
        """The weight of the KL terms at a step counted from 0."""
        return 1.0

    def value(self, record: LogWeights, rows: Rows, beta: float | Tensor) -> Tensor:
        """The objective, a scalar, float64."""
        raise NotImplementedError(f"{type(self).__name__} must write value(record, rows, beta)")

    def loss(
        self,
        record: LogWeights,
        beta: float | Tensor,
        num_data: int,
        keep: Tensor | None = None,
    ) -> Tensor:
        """-objective of one record; what stands outside the data plate counts 1/`num_data`.

        `keep [rows]` marks the rows that count.
        """
        value = self.value(record, Rows(num_data, keep), beta)
        if value.dim():
            raise PairError(
                f"objective '{self.name}': value(...) returned a tensor {list(value.shape)}; "
                "expected one number, such as rows.mean(...) of one value a datum"
            )
        return -value

    def pyro_loss(self, *, vectorize: bool, max_plate_nesting: int) -> Any:
        """Pyro's own estimator of this objective; None where it has none."""
        return None

    def ready(self, pair: Pair) -> Pair:
        """The pair as this objective runs it: draws that are held fixed may be discrete."""
        return pair.drawing() if self.scoring == "fixed draws" else pair

    def check(self, pair: Pair) -> None:
        """Refuse pairs for which this objective is not what it says. Raises: `PairError`."""
        if pair.drawn and not self.enumerates:
            raise PairError(
                f"site '{pair.drawn[0]}' is marked for enumeration in the guide, but objective "
                f"'{self.name}' is a function of draws and their weights, not of means over all "
                "values; take the site out of the guide and let the model sum over it, train by "
                "objective 'elbo', or by 'reweighted_wake_sleep', which draws it"
            )
        if pair.scaled_sites and self.weighs_draws:
            raise PairError(
                f"site '{pair.scaled_sites[0]}' is scaled by poutine.scale, so objective "
                f"'{self.name}' would weigh draws by what is no density; remove the scale, or "
                "train by objective 'elbo'"
            )


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


class Rows:
    """Means over the data of a batch, of those rows that `keep [rows]` marks."""

    def __init__(self, num_data: int, keep: Tensor | None = None):
        self.num_data, self.keep = num_data, keep

    def mean(self, values: Tensor) -> Tensor:
        """Of `[rows]`; of what stands outside the data plate `[]`, its share."""
        if values.dim() == 0:
            return values / self.num_data
        if self.keep is None:
            return values.mean()
        return (values * self.keep).sum() / self.keep.sum()
