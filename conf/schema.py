"""What can be configured: one dataclass per group, each key with its default and allowed range.

The metadata of a field are read by `conf.describe`: `allowed` is an inclusive range (low, high),
`choices` a list of allowed texts, `only` the options of its group that the key has an effect with,
`doc` what it means. None is allowed where the type says Optional.
"""

from dataclasses import dataclass, field
from typing import Any, Final

VIRTUAL_SITES: Final = 4  # hospitals of data=virtual where `sites` is null


def _in(default: Any, *allowed: Any, doc: str, only: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"allowed": allowed, "doc": doc, "only": only})


@dataclass
class Data:
    """Where the hospitals' observations come from."""

    name: str = "virtual"
    timezone: str | None = field(
        default=None,
        metadata={
            "doc": "IANA zone of times that carry none; they are refused without it",
            "only": ("folder",),
        },
    )
    path: str | None = field(
        default=None,
        metadata={
            "doc": "federation folder, the one above the sites' folders",
            "only": ("folder",),
        },
    )
    patients_per_site: int = _in(16, 1, 100_000, doc="virtual people per hospital", only=("virtual",))
    days: int = _in(14, 1, 366, doc="days of record per virtual person", only=("virtual",))


@dataclass
class Task:
    """What is learnt."""

    name: str = "glucose"
    unit: str = field(
        default="mg/dL", metadata={"choices": ("mg/dL", "mmol/L"), "doc": "unit in which figures are shown"}
    )
    stride_min: int = _in(15, 1, 240, doc="minutes between two predictions that are trained on or judged")
    low_mg_dl: float = _in(70.0, 54.0, 100.0, doc="hypoglycaemia: glucose below this")
    alarm_mg_dl: float = _in(
        80.0, 54.0, 140.0, doc="a hypoglycaemia alarm rings when the forecast goes below this"
    )
    horizon_min: int = _in(
        5, 1, 240, doc="minutes whose mean SpO2 is forecast; 60 for hourly records", only=("hypoxemia",)
    )
    spo2_low_pct: float = _in(90.0, 70.0, 98.0, doc="hypoxemia: mean SpO2 below this", only=("hypoxemia",))
    false_alarms_per_day: float = _in(
        2.0, 0.01, 1000.0, doc="per patient, at which warnings of hypoxemia are judged", only=("hypoxemia",)
    )


@dataclass
class Model:
    """The network that is shared; every one is linear in its last layer."""

    name: str = "linear"
    hidden: int = _in(32, 1, 4096, doc="width of hidden layers", only=("gru", "mlp", "tcn"))


@dataclass
class Strategy:
    """How the coordinator combines what sites release, and how much work a site does per round."""

    name: str = "fedavg"
    weighting: str = field(
        default="patients",
        metadata={
            "choices": ("patients", "equal"),
            "doc": "patients: rounded numbers that sites declare when they take the plan",
        },
    )
    most_times_median: float = _in(
        25.0, 1.0, 1e6, doc="most that a site weighs, in times the median site, whatever it declares"
    )
    sites_per_round: int | None = _in(
        None, 1, 1_000_000, doc="sites asked in a round, drawn by the plan's hash; null is all"
    )
    local_steps: int = _in(1, 1, 10_000, doc="optimiser steps at a site per round")
    learning_rate: float = _in(0.3, 0.0, 100.0, doc="step of the site's optimiser, in whitened coordinates")
    proximal_mu: float = _in(0.0, 0.0, 1e6, doc="pull of local steps to the global model", only=("fedprox",))
    server_learning_rate: float = _in(1.0, 0.0, 100.0, doc="step of the coordinator's optimiser")
    beta1: float = _in(
        0.9,
        0.0,
        0.9999,
        doc="first moment, or momentum",
        only=("fedadam", "fedadagrad", "fedavgm", "fedyogi"),
    )
    beta2: float = _in(0.99, 0.0, 0.9999, doc="second moment", only=("fedadam", "fedyogi"))
    tau: float = _in(1e-3, 1e-12, 1.0, doc="adaptivity floor", only=("fedadam", "fedadagrad", "fedyogi"))
    trim: float = _in(
        0.25, 0.0, 0.49, doc="share of sites left out at each end of each number", only=("trimmed_mean",)
    )
    buffer_size: int = _in(
        2, 1, 1_000_000, doc="updates that make the next version of the model", only=("fedbuff",)
    )
    max_staleness: int = _in(
        10,
        0,
        1_000_000,
        doc="versions an update may be behind; an older one is refused",
        only=("fedbuff",),
    )
    cohorts: int = _in(
        4, 1, 1000, doc="most cohorts of sites; with ifca exactly so many", only=("clustered", "ifca")
    )
    cohort_rounds: int = _in(
        5, 1, 100_000, doc="rounds with one model, after which sites are parted", only=("clustered", "ifca")
    )
    cohort_level: float = _in(
        0.05,
        0.0,
        1.0,
        doc="chance that sites that differ in nothing are parted; 1: no test",
        only=("clustered",),
    )
    q: float = _in(
        1.0, 0.0, 100.0, doc="how much more sites of high loss count; 0 is fedavg", only=("qfedavg",)
    )
    loss_bound: float = _in(
        1.0, 1e-6, 1e6, doc="greatest loss of a patient that counts; public", only=("qfedavg",)
    )
    loss_share: float = _in(
        1.0,
        1e-3,
        1e3,
        doc="weight of the loss beside the gradient in the step that releases both",
        only=("qfedavg",),
    )
    local_layers: str = field(
        default="head",
        metadata={
            "doc": "arrays that are each site's own: names, or what they begin with, joined by +; * is all",
            "only": ("fedper",),
        },
    )
    average_last: float = _in(0.5, 0.0, 1.0, doc="fraction of the last rounds whose mean is the final model")


@dataclass
class Privacy:
    """What a site's release may reveal of any one patient."""

    name: str = "patient"
    epsilon: float | None = _in(8.0, 0.001, 1e6, doc="target over the whole plan, an upper bound")
    delta: float = _in(1e-4, 1e-12, 0.1, doc="probability that the bound does not hold")
    noise_multiplier: float | None = _in(None, 0.0, 1e6, doc="given instead of epsilon; null calibrates it")
    clip_norm: float = _in(0.25, 1e-6, 1e6, doc="greatest L2 norm of one patient's gradient")
    sampling_rate: float = _in(
        1.0,
        1e-6,
        1.0,
        doc="probability that a patient takes part in a step (Poisson); without privacy about the share of"
        " patients in a step, who take turns",
    )
    windows_per_patient: int = _in(256, 1, 100_000, doc="most windows of a patient averaged in one step")
    minimum_patients: int = _in(5, 1, 1_000_000, doc="a site with fewer training patients is refused")


@dataclass
class Personal:
    """How a site fits the global model to itself and then to each patient."""

    name: str = "bayes"
    cohorts: str = field(
        default="1",
        metadata={
            "choices": ("auto", "1", "2", "3", "4"),
            "doc": "cohorts of a site's patients; auto: as many as forecast unseen patients best",
            "only": ("bayes",),
        },
    )


@dataclass
class Engine:
    """What carries messages between the coordinator and the sites."""

    name: str = "auto"
    device: str = field(
        default="auto", metadata={"choices": ("auto", "cpu", "cuda"), "doc": "where tensors live"}
    )
    processes: int | None = _in(
        None,
        1,
        1024,
        doc="that train sites at once on a CPU; null is OMP_NUM_THREADS, else one for each core",
        only=("auto", "batched"),
    )
    task_s: Any = field(
        default=None,
        metadata={
            "doc": "with an asynchronous strategy: virtual seconds of a task at each site, a list in the "
            "order of their names; null draws them from the seed"
        },
    )
    most_steps: Any = field(
        default=None,
        metadata={
            "doc": "local steps that each site does in a round at most, a list in the order of their names; "
            "null: what strategy.local_steps asks"
        },
    )
    slowest: float = _in(4.0, 1.0, 1e6, doc="with task_s=null: drawn evenly in the logarithm from 1 to this")
    ray_address: str | None = field(
        default=None,
        metadata={
            "doc": "HOST:PORT of a Ray cluster, or auto for the one on this machine; null is RAY_ADDRESS, "
            "else a cluster of this machine alone, started for the run",
            "only": ("ray",),
        },
    )
    num_cpus: float = _in(1.0, 0.1, 1024.0, doc="cores of the cluster for each process", only=("ray",))
    num_gpus: float = _in(0.0, 0.0, 16.0, doc="GPUs for each process; 0.25 puts four on one", only=("ray",))


@dataclass
class Evaluation:
    """How models are judged."""

    name: str = "folds"
    folds: int = _in(5, 2, 100, doc="folds over patients within each site", only=("folds",))
    repeats: int = _in(50, 1, 10_000, doc="random splits of each site's patients", only=("splits",))
    test_fraction: float = _in(
        0.34, 0.05, 0.95, doc="share of patients that judge in a random split", only=("splits",)
    )
    bootstrap_samples: int = _in(1000, 100, 100_000, doc="resamples of patients behind an interval")
    level: float = _in(0.95, 0.5, 0.999, doc="coverage of the intervals")
    curves: bool = field(
        default=True, metadata={"doc": "learning curves: left-out hospital, few patients, few days"}
    )


@dataclass
class Run:
    """Where results go and what else is written."""

    dir: str | None = field(default=None, metadata={"doc": "folder of the run; default runs/<name>"})
    forecasts: bool = field(default=False, metadata={"doc": "also write forecasts.parquet"})
    profile: bool = field(
        default=False, metadata={"doc": "also write profile.json: where the time of rounds goes"}
    )


@dataclass
class Config:
    """One run, whole."""

    data: Data = field(default_factory=Data)
    task: Task = field(default_factory=Task)
    model: Model = field(default_factory=Model)
    strategy: Strategy = field(default_factory=Strategy)
    privacy: Privacy = field(default_factory=Privacy)
    personal: Personal = field(default_factory=Personal)
    engine: Engine = field(default_factory=Engine)
    evaluation: Evaluation = field(default_factory=Evaluation)
    run: Run = field(default_factory=Run)
    rounds: int = _in(20, 1, 100_000, doc="rounds of the federation")
    sites: Any = field(
        default=None,
        metadata={
            "doc": "virtual: number of hospitals, null is 4; folder: number or list of names, null is all"
        },
    )
    seed: int = _in(0, 0, 2**31 - 1, doc="everything that is random in a simulation follows from it")
