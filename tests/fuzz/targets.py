"""The fuzz targets by name: for each reader of outside data, how to make hostile input for it and how to hand it over."""

from __future__ import annotations

import bundle_targets
import other_targets
from common import Target

TARGETS: dict[str, type[Target]] = {
    target.name: target
    for target in (
        bundle_targets.ManifestTarget,
        bundle_targets.TokenizerTarget,
        bundle_targets.TextTarget,
        bundle_targets.GoldenTarget,
        bundle_targets.EvidenceTarget,
        bundle_targets.CertificateTarget,
        bundle_targets.GraphTarget,
        bundle_targets.OpenVinoTarget,
        bundle_targets.BundleTarget,
        other_targets.CheckpointTarget,
        other_targets.ImagesTarget,
        other_targets.ClipsTarget,
        other_targets.PlanTarget,
        other_targets.TrafficTarget,
        other_targets.CompareTarget,
        other_targets.TrainerTarget,
        other_targets.ReadersTarget,
    )
}
