"""Nothing that was saved is lost, half-written or taken where it does not belong."""

import os
import resource
import shutil
import signal
from pathlib import Path

import lightning as L
import pytest
import torch

from lmix.model.adapters import read_adapter, save_adapter
from lmix.model.mixture import Mixture
from lmix.training.checkpoints import PolicyCheckpoint
from lmix.training.config import OptimizerConfig
from lmix.training.objectives import GRPO
from lmix.training.preemption import Preemption
from lmix.training.state import check_checkpoint, find_checkpoint
from tests.conftest import close
from tests.training.endings import Told
from tests.training.helpers import data, module, texts, trainer


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_resuming_is_bit_for_bit(tmp_path, schedule):
    """5 steps at once, and 3 + 2 steps by a checkpoint; 16 problems by 5 make uneven batches and a second epoch."""

    def run(folder, steps, stop=None, ckpt=None):
        L.seed_everything(5)
        m = module(optimizer=OptimizerConfig(lr=1e-3, schedule=schedule), objective=GRPO(inner_updates=2))
        keep = PolicyCheckpoint(every_n_steps=1, keep=-1)
        t = trainer(folder, steps, callbacks=[keep, *([StopAfter(stop)] if stop else [])])
        t.fit(m, data(prompts=5), ckpt_path=ckpt)
        return m, keep

    whole, _ = run(tmp_path / "whole", 5)
    half, keep = run(tmp_path / "half", 5, stop=3)
    assert half.trainer.global_step == 3
    resumed, _ = run(tmp_path / "resumed", 5, ckpt=str(keep.saved[-1]))
    assert resumed.trainer.global_step == 5
    assert texts(whole.groups) == texts(resumed.groups)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


class StopAfter(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= self.step


def test_a_checkpoint_holds_adapters_only_and_a_peft_folder_lies_beside_it(tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from lmix.model.sources import resolve

    m = module()
    trainer(tmp_path, 2, callbacks=[PolicyCheckpoint(every_n_steps=1, keep=1)]).fit(m, data())
    folder = tmp_path / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["step=0002", "step=0002.ckpt"]
    checkpoint = torch.load(folder / "step=0002.ckpt", weights_only=True)
    assert all(".lora_" in name for name in checkpoint["state_dict"])
    assert checkpoint["lmix"]["alpha"] == 0.5
    card = (folder / "step=0002" / "README.md").read_text()
    assert "policy 0.5 (this folder), reference 0.5 (lmix:tiny-arithmetic-sft)" in card
    assert "  README.md\n" in (folder / "step=0002" / "SHA256SUMS").read_text()
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(resolve("lmix:tiny-arithmetic"), dtype=torch.float32),
        str(folder / "step=0002"),
    )
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        assert close(m.policy(ids, Mixture.at(0.0)), plain(input_ids=ids).logits, 1e-5)


def test_checkpoints_that_do_not_fit(tmp_path):
    m = module()
    m.configure_model()
    state = {name: value.clone() for name, value in m.state_dict().items()}
    name = next(iter(state))
    with pytest.raises(ValueError, match="is missing from the checkpoint"):
        m.load_state_dict({})
    with pytest.raises(ValueError, match="is not in this model"):
        m.load_state_dict({**state, "policy.more": torch.zeros(1)})
    with pytest.raises(ValueError, match="must be"):
        m.load_state_dict({**state, name: torch.zeros(3, 3)})
    with pytest.raises(ValueError, match="NaN or Inf"):
        m.load_state_dict({**state, name: state[name] * float("nan")})
    frozen = next(name for name in state if ".reference." in name)
    with pytest.raises(ValueError, match="another frozen adapter"):
        m.load_state_dict({**state, frozen: state[frozen] + 1e-3})
    checkpoint: dict = {}
    m.on_save_checkpoint(checkpoint)
    saved = checkpoint["lmix"]
    with pytest.raises(ValueError, match=r"trained on backbone elsewhere, which differs"):
        m.on_load_checkpoint({"lmix": {**saved, "fingerprint": "that of another model", "backbone": "elsewhere"}})
    with pytest.raises(ValueError, match=r"adapters have LoRA scales .* use the same adapters.lora_alpha"):
        m.on_load_checkpoint({"lmix": {**saved, "scaling": {"policy": [1.0], "reference": [2.0]}}})


def test_a_checkpoint_comes_after_the_evaluation_of_its_step(tmp_path):
    """So a run that was stopped in between has both, and none is done twice."""
    order = []

    class Stop(L.Callback):
        def on_validation_start(self, trainer, pl_module):
            order.append((trainer.global_step, sorted(p.name for p in (tmp_path / "checkpoints").glob("*.ckpt"))))
            if trainer.global_step == 4 and len(order) == 2:
                raise KeyboardInterrupt

    settings = {"val_check_interval": 2}
    callbacks = [PolicyCheckpoint(every_n_steps=1, keep=-1), Stop()]
    with pytest.raises(SystemExit):
        trainer(tmp_path, 6, callbacks=callbacks, **settings).fit(module(), data(prompts=2))
    last = max((tmp_path / "checkpoints").glob("*.ckpt"))
    assert last.name == "step=0003.ckpt"
    callbacks = [PolicyCheckpoint(every_n_steps=1, keep=-1), Stop()]
    resumed = module()
    trainer(tmp_path, 6, callbacks=callbacks, **settings).fit(resumed, data(prompts=2), ckpt_path=str(last))
    assert [step for step, _ in order] == [2, 4, 4, 6]
    # and one that goes on from a step with an evaluation does not do it again
    callbacks = [PolicyCheckpoint(every_n_steps=1, keep=-1), Stop()]
    again = module()
    path = str(tmp_path / "checkpoints" / "step=0004.ckpt")
    trainer(tmp_path, 6, callbacks=callbacks, **settings).fit(again, data(prompts=2), ckpt_path=path)
    assert [step for step, _ in order] == [2, 4, 4, 6, 6]
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_run_that_goes_on_in_its_folder_drops_its_older_checkpoints(tmp_path):
    keep = PolicyCheckpoint(every_n_steps=1, keep=2)
    trainer(tmp_path, 2, callbacks=[keep]).fit(module(), data())
    later = tmp_path / "checkpoints" / "step=0099.ckpt"
    later.write_text("of what the run was before somebody went back")
    last = str(keep.saved[-1])
    trainer(tmp_path, 4, callbacks=[PolicyCheckpoint(every_n_steps=1, keep=2)]).fit(module(), data(), ckpt_path=last)
    names = sorted(p.name for p in (tmp_path / "checkpoints").glob("*.ckpt"))
    assert names == ["step=0003.ckpt", "step=0004.ckpt"]
    assert (tmp_path / "checkpoints" / "step=0099.ckpt.abandoned").is_file()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """Of a run with three checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    trainer(folder, 3, callbacks=[PolicyCheckpoint(every_n_steps=1, keep=-1)]).fit(module(), data())
    return folder


@pytest.fixture
def copied(run_folder, tmp_path) -> Path:
    shutil.copytree(run_folder / "checkpoints", tmp_path / "checkpoints")
    return tmp_path


def flip(path: Path, place: int | None = None) -> None:
    """Change a bit at a place, or a thousand bytes in the middle of a file."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    for at in range(middle, middle + 1000) if place is None else [place]:
        content[at] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_the_newest_whole_checkpoint_of_a_folder_is_found(copied, caplog):
    newest = [copied / "checkpoints" / f"step={step:04d}.ckpt" for step in (3, 2, 1)]
    assert find_checkpoint(str(copied)) == find_checkpoint(str(copied / "checkpoints")) == str(newest[0])
    (copied / "checkpoints" / ".step=0004.ckpt.part").write_bytes(newest[0].read_bytes()[:5000])
    flip(newest[0])
    assert find_checkpoint(str(copied)) == str(newest[1])
    assert "step=0003.ckpt' is damaged or not a checkpoint" in caplog.text
    cut(newest[1])
    assert find_checkpoint(str(copied)) == str(newest[2])
    newest[2].write_bytes(b"")
    with pytest.raises(ValueError, match=r"contains no intact checkpoint: .*step=0003.ckpt' is damaged"):
        find_checkpoint(str(copied))
    with pytest.raises(ValueError, match=r"contains no intact checkpoint: give a run's folder"):
        find_checkpoint(str(copied / "checkpoints" / "step=0001"))


@pytest.mark.parametrize(
    "damage", [flip, cut, lambda path: path.write_bytes(b"PK"), lambda path: path.write_bytes(b"")]
)
def test_a_damaged_checkpoint_is_one_line(copied, damage):
    path = copied / "checkpoints" / "step=0003.ckpt"
    damage(path)
    with pytest.raises(ValueError, match=r"^ckpt_path '.*step=0003.ckpt' is damaged or not a checkpoint: .*folder$"):
        check_checkpoint(str(path))


def test_every_bit_of_a_checkpoint_that_a_run_would_read_is_checked(copied):
    """Bits all over the file: the change is noticed, or what is read is the same."""
    path = copied / "checkpoints" / "step=0001.ckpt"
    whole = torch.load(path, weights_only=True)
    content = path.read_bytes()
    for place in range(37, len(content), len(content) // 60):
        flip(path, place)
        try:
            check_checkpoint(str(path))
        except ValueError:
            pass
        else:
            found = torch.load(path, weights_only=True)
            assert all(torch.equal(found["state_dict"][name], value) for name, value in whole["state_dict"].items())
        path.write_bytes(content)


def test_a_checkpoint_in_another_s_place_is_refused(copied):
    folder = copied / "checkpoints"
    os.replace(folder / "step=0001.ckpt", folder / "step=0003.ckpt")
    with pytest.raises(ValueError, match=r"step=0003.ckpt' contains step 1, but its name gives another"):
        check_checkpoint(str(folder / "step=0003.ckpt"))
    assert find_checkpoint(str(copied)) == str(folder / "step=0002.ckpt")
    shutil.copy(folder / "step=0002.ckpt", folder / "best.ckpt")  # a name that says no step may hold any
    check_checkpoint(str(folder / "best.ckpt"))


def test_damaged_and_swapped_adapters_are_refused(copied):
    folder, other = (copied / "checkpoints" / f"step=000{step}" for step in (1, 2))
    read_adapter(str(folder))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        content = (folder / name).read_bytes()
        for damage in (lambda path: path.write_bytes((other / path.name).read_bytes() + b" "), cut):
            damage(folder / name)
            with pytest.raises(
                ValueError, match=rf"^adapter '.*step=0001' (is damaged: {name}|can't be read: )[^\n]*$"
            ):
                read_adapter(str(folder))
        (folder / name).write_bytes(content)
    flip(folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"is damaged: adapter_model.safetensors does not match SHA256SUMS"):
        read_adapter(str(folder))
    (folder / "SHA256SUMS").write_text("")
    with pytest.raises(ValueError, match=r"is damaged: adapter_model.safetensors does not match SHA256SUMS"):
        read_adapter(str(folder))
    (folder / "SHA256SUMS").unlink()  # as peft writes folders
    read_adapter(str(folder))


class FullDisk(L.Callback):
    """From the second step on no file may grow over 1,000 bytes."""

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.parametrize("fails", ["adapter", "checkpoint"])
def test_a_full_disk_leaves_the_former_checkpoint(tmp_path, monkeypatch, fails):
    if fails == "checkpoint":
        plain = PolicyCheckpoint.save

        def save(self, trainer):
            monkeypatch.setattr(trainer.lightning_module.policy, "save_policy", lambda folder, origin: None)
            plain(self, trainer)

        monkeypatch.setattr(PolicyCheckpoint, "save", save)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    keep = PolicyCheckpoint(every_n_steps=1, keep=1)
    try:
        with pytest.raises(
            OSError, match=r"can't save .*step=0002.ckpt \(.*\): resume from .*step=0001.ckpt, the last"
        ):
            trainer(tmp_path, 3, callbacks=[FullDisk(), keep]).fit(module(), data())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    names = [p.name for p in (tmp_path / "checkpoints").iterdir()]
    assert not [name for name in names if ".part" in name or ".old" in name or "0002" in name]
    assert find_checkpoint(str(tmp_path)).endswith("step=0001.ckpt")


@pytest.mark.parametrize(("number", "evaluation"), [(signal.SIGTERM, 2), (signal.SIGUSR1, 1000)])
def test_a_run_that_is_told_to_end_saves_its_step_and_goes_on_exactly(tmp_path, monkeypatch, number, evaluation):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    settings = {"val_check_interval": evaluation}

    def run(folder, ckpt=None, callbacks=()):
        L.seed_everything(5)
        m, keep = module(), PolicyCheckpoint(every_n_steps=10)
        t = trainer(folder, 4, callbacks=[Preemption(), keep, *callbacks], **settings)
        t.fit(m, data(prompts=5), ckpt_path=ckpt)
        return m

    before = signal.getsignal(number)
    whole = run(tmp_path / "whole")
    with pytest.raises(SystemExit):
        run(tmp_path / "told", callbacks=[Told(number)])
    assert signal.getsignal(number) == before
    path = find_checkpoint(str(tmp_path / "told"))
    assert path.endswith("step=0002.ckpt")
    resumed = run(tmp_path / "resumed", path)
    assert resumed.trainer.global_step == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_save_adapter_writes_over_what_a_killed_process_left(tmp_path):
    m = module()
    m.configure_model()
    for left in (".x.part", ".x.old"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "junk").write_text("half")
    for _ in range(2):
        save_adapter(m.policy.peft_model, "policy", tmp_path / "x")
        assert [p.name for p in tmp_path.iterdir()] == ["x"]
    read_adapter(str(tmp_path / "x"))
    assert (tmp_path / "x" / "SHA256SUMS").is_file()


def test_a_new_run_in_the_folder_of_another_is_refused(tmp_path, run_folder):
    with pytest.raises(ValueError, match=r"already contains checkpoints of another run: resume with --ckpt_path="):
        trainer(run_folder, 1, callbacks=[PolicyCheckpoint()]).fit(module(), data())
