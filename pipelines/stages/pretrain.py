"""DVC stage `pretrain`: shards -> artifacts/pretrain, going on in runs/pretrain if begun."""

from pathlib import Path
from typing import TYPE_CHECKING

from mae.params import Params
from mae.training.launch import launch_if_wanted
from pipelines.harness import run_stage

if TYPE_CHECKING:
    from mae.training.pretraining import Pretrained

_MODULE = "pipelines.stages.pretrain"
SHARDS, RUNS = Path("data/shards/images"), Path("runs/pretrain")
ARTIFACT, PLOTS = Path("artifacts/pretrain"), Path("artifacts/plots/pretrain")
METRICS, VERDICT = Path("artifacts/metrics/pretrain.json"), Path("data/validation/verdict.json")


def main(params: Params, arguments: list[str]) -> None:
    runtime, learns = params.runtime, params.pretrain
    if launch_if_wanted(runtime.launch, _MODULE, arguments, device=runtime.device, learns=learns):
        return
    from mae.data.dataset import read_dataset_info
    from mae.data.validation.expectations import Verdict
    from mae.evaluation.observing import Observer
    from mae.report.reconstruction import draw_reconstructions
    from mae.training.devices import joined
    from mae.training.pretraining import pretrain

    Verdict.read(VERDICT).demand_valid(read_dataset_info(SHARDS))
    with joined(runtime.device, runtime.launch.sharding) as place:
        observe = Observer(params, SHARDS, place, draw_reconstructions)
        done = pretrain(params, SHARDS, RUNS, place, observe)
        if place.leads:
            _write(params, done)


def _write(params: Params, done: "Pretrained") -> None:
    from mae.data.dataset import read_dataset_info
    from mae.files import write_json
    from mae.model.artifact import save_artifact
    from mae.model.methods import Supervised
    from mae.provenance import commit, resolved
    from mae.report.reconstruction import draw_reconstructions
    from mae.training.journal import write_loss_curve, write_observed
    from mae.training.pretraining import held_out

    # Nothing here that changes from run to run, such as times: equal weights, equal artifact.
    training = {
        **done.summary,
        "precision": done.precision,
        "seed": params.seed,
        "params": resolved(params, ["data", "model", "pretrain"]),
        "data_fingerprint": read_dataset_info(SHARDS).fingerprint,
        "commit": commit(),
    }
    save_artifact(ARTIFACT, done.autoencoder, done.statistics, training)
    write_loss_curve(done.folder, PLOTS / "loss.csv")
    write_observed(done.folder, PLOTS / "observed.csv")
    if not isinstance(done.autoencoder, Supervised):
        sample = next(iter(held_out(params, SHARDS, batch=8, at_most=8)))
        picture = PLOTS / "reconstruction.png"
        draw_reconstructions(done.autoencoder, done.statistics, sample.images, sample.ids, picture)
    write_json(METRICS, done.summary)


if __name__ == "__main__":
    run_stage("pretrain", main)
