"""What a run is: pydantic models, torch-free, shared by the HTTP body, the database row, the command line and the manifest.

Every field has a default, so a spec is a preset (`ddcore.presets`) plus the fields that differ. Models are frozen and refuse
unknown fields. Sizes that only make sense beside a data set are checked in `ddcore.checks`.
"""

from ddcore.specs.fields import Augmentation, Count, NonNegative, Positive, Seed, Spec
from ddcore.specs.jobs import Baseline, DistillSpec, Downstream, EvaluateSpec, MeasureSpec, ObserveSpec, PretrainSpec, merge
from ddcore.specs.methods import (
    MATCHING,
    DinoTMSpec,
    ExpertPath,
    HighLossSpec,
    ImprovedSpec,
    KMeansSpec,
    MatchingSpec,
    MethodSpec,
    MKDTPlusSpec,
    MKDTSpec,
    RandomSpec,
)
from ddcore.specs.students import VIT_HEADS, ExpertsSpec, StudentSpec
from ddcore.specs.sweeps import SweepSpec
from ddcore.specs.teachers import AugmentSpec, BackboneSpec, BarlowTwinsSpec, DinoSpec, GivenTeacherSpec, SimCLRSpec, TeacherSpec

__all__ = [
    "MATCHING",
    "VIT_HEADS",
    "AugmentSpec",
    "Augmentation",
    "BackboneSpec",
    "BarlowTwinsSpec",
    "Baseline",
    "Count",
    "DinoSpec",
    "DinoTMSpec",
    "DistillSpec",
    "Downstream",
    "EvaluateSpec",
    "ExpertPath",
    "ExpertsSpec",
    "GivenTeacherSpec",
    "HighLossSpec",
    "ImprovedSpec",
    "KMeansSpec",
    "MKDTPlusSpec",
    "MKDTSpec",
    "MatchingSpec",
    "MeasureSpec",
    "MethodSpec",
    "NonNegative",
    "ObserveSpec",
    "Positive",
    "PretrainSpec",
    "RandomSpec",
    "Seed",
    "SimCLRSpec",
    "Spec",
    "StudentSpec",
    "SweepSpec",
    "TeacherSpec",
    "merge",
]
