"""Slurm: the ready launchers, what is said without it, the script that starts Ray in an allocation; and a machine's own limit."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from fgvr import cli
from fgvr.utils.paths import config_dir

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "ray_on_slurm.sh"
STAND_INS = {
    "scontrol": "echo node7; echo node8",
    "srun": 'echo "$@" >> "$CALLS"; case "$*" in *hostname*) echo 10.0.0.7;; *"ray status"*) echo " 1 node_a"; echo " 1 node_b";; esac',
}


@pytest.mark.parametrize("launcher", ["submitit_slurm", "slurm_gpu", "slurm_cpu"])
def test_a_sweep_on_slurm_without_slurm_is_one_line(launcher: str, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(["-m", "mode=evaluate", "trigger=never,always", f"hydra/launcher={launcher}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "sbatch and srun not found" in said and "hydra/launcher=submitit_local" in said


def test_more_workers_than_this_machine_can_start_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["mode=evaluate", "models=fake", "dataset.genera=[2,2]", "engine=ray", "engine.workers=5000"]) == 2
    assert "engine.workers=5000 with engine.cpus=1 want 5000 cores; this machine has" in capsys.readouterr().err


def test_the_ready_launchers_are_submitits_with_values_that_can_be_changed() -> None:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        words = ["mode=evaluate", "hydra/launcher=slurm_gpu", "hydra.launcher.partition=a100", "hydra.launcher.account=birds"]
        gpu = loader.load_configuration("config", words, RunMode.MULTIRUN).hydra.launcher
        cpu = loader.load_configuration("config", ["mode=evaluate", "hydra/launcher=slurm_cpu"], RunMode.MULTIRUN).hydra.launcher
    assert gpu._target_ == cpu._target_ == "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
    assert (gpu.partition, gpu.account, gpu.gpus_per_node, gpu.max_num_timeout) == ("a100", "birds", 1, 0)
    assert cpu.gpus_per_node is None and cpu.timeout_min == 240


def test_the_script_starts_a_cluster_over_the_allocation_and_one_command_on_it(tmp_path: Path) -> None:
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    calls = tmp_path / "calls"
    alone = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls)}
    alone.pop("SLURM_JOB_NODELIST", None)
    said = subprocess.run([SCRIPT, "mode=evaluate"], env=alone, capture_output=True, text=True, timeout=60)
    assert said.returncode == 2 and said.stderr.startswith("error: this is no Slurm allocation") and said.stderr.count("\n") == 1
    inside = alone | {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "30000"}
    said = subprocess.run([SCRIPT], env=inside, capture_output=True, text=True, timeout=60)
    assert said.returncode == 2 and "what shall run?" in said.stderr
    said = subprocess.run([SCRIPT, "mode=evaluate", "models=photos"], env=inside, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    made = calls.read_text()
    assert "--nodelist=node7 --overlap ray start --head --node-ip-address=10.0.0.7 --port=30000" in made
    assert "--nodelist=node8 --overlap ray start --address=10.0.0.7:30000 --block" in made
    assert made.rstrip().endswith("fgvr mode=evaluate models=photos engine=ray engine.address=10.0.0.7:30000")
