"""Named sweeps: plain tables of fields, merged under whatever the user gives. Torch-free."""

from typing import Any

# The demo with a student of twice the width: the narrow one's features are so few that the noise of probes hides what a set is worth.
_DIGITS: dict[str, Any] = {"preset": "demo", "student": {"width": 16}}
_EVALUATE: dict[str, Any] = {
    "downstream": [{"train": "digits-train", "test": "digits-test"}],
    "label_fractions": [0.01, 0.05],
    "seeds": 8,
    "rounding": False,
}


def _plus(iterations: int) -> dict[str, Any]:
    """Thirty looks cost as much as a fifth of the iterations on the digits; a tenth is left out, so these take about a tenth longer."""
    return {"iterations": round(0.9 * iterations), "looks": 30}


def _methods(iterations: int) -> dict[str, Any]:
    """Every way to follow one teacher at one budget. `mkdt`: the start and the raw paths of MKDT's authors, with the base's rates."""
    return {
        "mkdt": {"experts": {"ema": None}, "method": {"name": "mkdt", "init": "high_loss"}},
        "mkdt_k_means": {"experts": {"ema": None}, "method": {"name": "mkdt"}},
        "mkdt_averaged": {"method": {"name": "mkdt"}},
        "mkdt_plus": {"method": {"name": "mkdt_plus", **_plus(iterations)}},
        "dino_tm": {"method": {"name": "dino_tm", **_plus(iterations)}},
    }


SWEEPS: dict[str, dict[str, Any]] = {
    # Which trajectory to match, at one teacher and budget: eight teachers, each followed by every variant.
    "ranking-digits": {
        "base": _DIGITS,
        "variants": _methods(1500),
        "seeds": 8,
        "evaluate": _EVALUATE,
    },
    # What of a DINO run to match: students that follow its teacher as it comes to be, or as it ended; or the student network's own run,
    # whose experts each take longer than many others, and move a tenth of their way: so do the rates.
    "paths-digits": {
        "base": _DIGITS | {"method": {"name": "dino_tm", **_plus(1500)}},
        "variants": {"staged": {}, "final": {"method": {"path": "final"}}}
        | {
            path: {"experts": {"num": 8}, "method": {"path": path, "initial_rate": 0.1, "lr_rate": 0.0002}}
            for path in ("teacher", "student")
        },
        "seeds": 4,
        "evaluate": _EVALUATE,
    },
    # What each switch of `mkdt_plus` and `dino_tm` gains or costs: one changed at a time. Scored on a validation split, since one
    # looks here in order to choose.
    "ablation-digits": {
        "base": _DIGITS | {"method": {"name": "mkdt_plus", **_plus(1500)}},
        "variants": {
            "mkdt_plus": {},
            "no_looks": {"method": {"looks": 0, "iterations": 1500}},
            "no_lag": {"method": {"lag": False}},
            "whole_epochs": {"method": {"continuous": False}},
            "raw_paths": {"experts": {"ema": None}},
            "layers": {"method": {"normalise": "layers"}},
            "displacement": {"method": {"displacement": 1.0}},
            "gap": {"method": {"gap": 0.3}},
            "functional": {"method": {"functional": 1.0}},
            "functional_expert": {"method": {"functional": 1.0, "functional_goal": "expert"}},
            "own_starts": {"method": {"own_starts": 0.5}},
            "growing": {"method": {"growing": 0.5}},
            "threshold": {"method": {"threshold": 1.0}},
            "cosine": {"method": {"schedule": "cosine"}},
            "staged": {"method": {"name": "dino_tm"}},
        },
        "seeds": 8,
        "evaluate": _EVALUATE | {"validation": 0.3, "baselines": ["random", "k_means"]},
    },
    # The same question on real images: days of one GPU.
    "ranking-cifar10": {
        "base": {"preset": "dino-resnet18-32"},
        "variants": _methods(5000),
        "seeds": 8,
        "evaluate": {"downstream": [{"train": "cifar10-train", "test": "cifar10-test"}], "label_fractions": [0.01, 0.05, 0.1, 0.5]},
    },
}
