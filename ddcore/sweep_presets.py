"""Named sweeps: plain tables of fields, merged under whatever the user gives. Torch-free."""

from typing import Any

SWEEPS: dict[str, dict[str, Any]] = {
    # What each part of a method gains on the digits: eight teachers, each followed by every variant.
    "ablation-digits": {
        "base": {"preset": "demo"},
        "variants": {
            "mkdt": {},
            "mkdt_raw": {"experts": {"ema": None}},
        },
        "seeds": 8,
        "evaluate": {
            "downstream": [{"train": "digits-train", "test": "digits-test"}],
            "label_fractions": [0.01, 0.05],
        },
    },
}
