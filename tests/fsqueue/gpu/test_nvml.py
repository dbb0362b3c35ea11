from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsqueue.gpu import nvml
from fsqueue.gpu.nvml import Gpu, all_gpus, cuda_environ, use_pci_order, visible_gpus
from tests.support.nvml.fake_driver import (
    GIB,
    GPU_IS_LOST,
    NO_PERMISSION,
    VERSION_MISMATCH,
    Driver,
    install,
    unplug,
)

UUIDS = ["GPU-aa10-0", "GPU-aa11-1", "GPU-b222-2", "GPU-c333-3"]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    return install(monkeypatch, tmp_path)


@pytest.fixture
def mixed(driver: Driver) -> Driver:
    """Four cards, of three models."""
    names = ["GeForce RTX 3090", "GeForce RTX 4090", "GeForce RTX 4090", "A100-SXM4-80GB"]
    for index, (name, uuid) in enumerate(zip(names, UUIDS, strict=True)):
        driver.add(index, f"NVIDIA {name}", uuid)
    return driver


@pytest.fixture
def cut(driver: Driver) -> Driver:
    """A card cut into two instances, and a whole one."""
    driver.add(0, "NVIDIA A100-SXM4-40GB", "GPU-parent", gib=40)
    driver.set(0, mig=1)
    driver.add("0/1", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "MIG-one", gib=5)
    driver.add("0/4", "NVIDIA A100-SXM4-40GB MIG 3g.20gb", "MIG-two", gib=20)
    driver.add(1, "NVIDIA L4", "GPU-whole")
    return driver


def visible(value: str | None, **more: str) -> list[str]:
    environ = more if value is None else {"CUDA_VISIBLE_DEVICES": value, **more}
    return [gpu.uuid for gpu in visible_gpus(environ)]


def test_gpus_are_listed_as_the_driver_describes_them(driver: Driver) -> None:
    driver.add(0, "NVIDIA GeForce RTX 3090", "GPU-a", gib=24)
    driver.add(1, "NVIDIA GH200 480GB", "GPU-b", gib=96)

    assert all_gpus() == [
        Gpu(0, "GPU-a", "NVIDIA GeForce RTX 3090", 24 * 1024),
        Gpu(1, "GPU-b", "NVIDIA GH200 480GB", 96 * 1024),
    ]
    assert driver.calls("nvmlInitWithFlags") == driver.calls("nvmlShutdown") == 1


@pytest.mark.slow
def test_the_library_is_found_where_the_loader_looks_for_it(driver: Driver, project: Path) -> None:
    driver.add(0, "NVIDIA L4", "GPU-a")
    done = subprocess.run(
        [sys.executable, "-c", "from fsqueue.gpu.nvml import all_gpus; print(all_gpus()[0].name)"],
        env={"PYTHONPATH": str(project), **driver.environ},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "NVIDIA L4\n"


def test_a_machine_without_a_driver_has_no_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unplug(monkeypatch, tmp_path)
    assert all_gpus() == []
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "0"}) == []
    assert not caplog.records


@pytest.mark.slow
def test_a_machine_without_even_the_library_has_no_gpus(project: Path) -> None:
    program = (
        "import ctypes, sys\n"
        "def refuse(*args): raise OSError('libnvidia-ml.so.1: cannot open shared object file')\n"
        "ctypes.CDLL = refuse\n"
        "from fsqueue.gpu.nvml import all_gpus\n"
        "print(all_gpus())\n"
        "sys.modules['pynvml'] = None\n"  # nor the binding
        "print(all_gpus())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(project), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n[]\n"


def test_a_driver_that_does_not_match_its_library_is_no_gpus_and_a_warning(
    mixed: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    mixed.set("*", nvmlInitWithFlags=VERSION_MISMATCH)
    assert all_gpus() == []
    assert "driver does not answer" in caplog.text


def test_a_lost_gpu_is_left_out_with_a_warning(
    mixed: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    mixed.set(1, nvmlDeviceGetHandleByIndex_v2=GPU_IS_LOST)
    assert [gpu.index for gpu in all_gpus()] == [0, 2, 3]
    assert "GPU 1 cannot be used" in caplog.text


def test_a_gpu_of_another_job_is_left_out_silently_and_not_counted_by_cuda(
    mixed: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    mixed.set(0, nvmlDeviceGetHandleByIndex_v2=NO_PERMISSION)
    assert [gpu.index for gpu in all_gpus()] == [1, 2, 3]
    assert visible("0") == UUIDS[1:2]
    assert not caplog.records


def test_memory_that_the_driver_does_not_know_is_unknown(driver: Driver) -> None:
    driver.set(0, name="NVIDIA GB10", uuid="GPU-a")
    assert all_gpus() == [Gpu(0, "GPU-a", "NVIDIA GB10", None)]


@pytest.mark.parametrize(
    ("value", "places"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("2", [2]),
        ("1,0", [1, 0]),
        (" 3, 1 ", [3, 1]),
        ("0,2,-1,1", [0, 2]),
        ("0,7,1", [0]),
        ("0,,1", [0]),
        ("1,1", []),
        ("0,1,0", []),
        ("GPU-b222-2", [2]),
        ("GPU-c,GPU-b", [3, 2]),
        ("GPU-aa", []),
        ("GPU-b,GPU-aa,GPU-c", [2]),
        ("GPU-b,GPU-b2", []),
        ("GPU-b,0", [2]),
        ("0,GPU-b", [0]),
        ("GPU-zz", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(
    mixed: Driver, value: str | None, places: list[int]
) -> None:
    assert visible(value) == [UUIDS[place] for place in places]


PIECES = ["0", "1", "2", "3", "4", "-1", "+1", " 2", "1st", "x", "", "GPU-", "GPU-a", "GPU-b"]


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([*PIECES, *UUIDS, " GPU-b"]), max_size=5).map(",".join))
def test_torch_reads_cuda_visible_devices_the_same_way(mixed: Driver, value: str) -> None:
    import torch.cuda

    with patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": value}):
        wanted = torch.cuda._parse_visible_devices()
    if wanted and isinstance(wanted[0], str):
        wanted = torch.cuda._transform_uuid_to_ordinals(wanted, UUIDS)
    valid = [place < len(UUIDS) for place in wanted]
    wanted = wanted[: valid.index(False)] if False in valid else wanted

    assert visible(value) == [UUIDS[place] for place in wanted]


def test_instances_stand_in_the_place_of_the_card_they_were_cut_from(cut: Driver) -> None:
    assert all_gpus() == [
        Gpu(0, "MIG-one", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", 5 * 1024, mig=True),
        Gpu(0, "MIG-two", "NVIDIA A100-SXM4-40GB MIG 3g.20gb", 20 * 1024, mig=True),
        Gpu(1, "GPU-whole", "NVIDIA L4", 24 * 1024),
    ]


@pytest.mark.parametrize(
    ("value", "uuids"),
    [
        ("MIG-two", ["MIG-two"]),
        ("MIG-two,MIG-one", ["MIG-two", "MIG-one"]),
        ("MIG-tw", []),
        ("MIG-one,GPU-whole", ["MIG-one"]),
        ("0", ["MIG-one"]),
        ("1,0", ["GPU-whole", "MIG-one"]),
        ("GPU-parent", ["MIG-one"]),
    ],
)
def test_an_instance_is_visible_by_its_uuid_and_the_first_by_its_card(
    cut: Driver, value: str, uuids: list[str]
) -> None:
    assert visible(value) == uuids


def test_a_card_in_mig_mode_without_instances_is_nothing_to_work_on(driver: Driver) -> None:
    driver.add(0, "NVIDIA H100 PCIe", "GPU-a")
    driver.set(0, mig=1)
    assert all_gpus() == []
    assert visible("0") == []


def test_a_card_that_could_be_cut_but_is_not_is_one_gpu(driver: Driver) -> None:
    driver.add(0, "NVIDIA H100 PCIe", "GPU-a")
    driver.set(0, mig=0)
    assert [gpu.uuid for gpu in all_gpus()] == ["GPU-a"]


def test_fastest_first_is_warned_of_only_where_it_matters(
    mixed: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    visible("GPU-b", CUDA_DEVICE_ORDER="FASTEST_FIRST")
    visible("2", CUDA_DEVICE_ORDER="PCI_BUS_ID")
    visible("2")
    assert not caplog.records
    visible("2", CUDA_DEVICE_ORDER="FASTEST_FIRST")
    assert "PCI_BUS_ID" in caplog.text


def test_fastest_first_among_equal_gpus_is_no_matter(
    driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    driver.add(0, "NVIDIA L4", "GPU-a")
    driver.add(1, "NVIDIA L4", "GPU-b")
    assert visible(None, CUDA_DEVICE_ORDER="FASTEST_FIRST") == ["GPU-a", "GPU-b"]
    assert not caplog.records


def test_a_process_is_made_to_count_in_pci_order_unless_its_user_chose_otherwise() -> None:
    environ: dict[str, str] = {}
    use_pci_order(environ)
    assert environ == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    environ = {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    use_pci_order(environ)
    assert environ == {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}


def test_a_child_process_sees_the_one_gpu_it_was_given(mixed: Driver) -> None:
    for gpu in all_gpus():
        assert visible_gpus(cuda_environ(gpu)) == [gpu]


def test_nvidia_smi_lists_the_gpus_where_the_library_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = "0, GPU-a, NVIDIA L4, 23034\n1, GPU-b, NVIDIA GB10, [N/A]\nERR!, GPU-c, x, 1"
    unplug(monkeypatch, tmp_path, f"cat <<'END'\n{answer}\nEND")
    assert all_gpus() == [
        Gpu(0, "GPU-a", "NVIDIA L4", 23034),
        Gpu(1, "GPU-b", "NVIDIA GB10", None),
    ]
    assert visible("1") == ["GPU-b"]


def test_a_question_that_this_binding_does_not_know_has_no_answer(mixed: Driver) -> None:
    library = nvml.Nvml.open()
    assert library is not None
    assert library.ask("DeviceGetFlavour") is None
    library.close()


def test_an_instance_has_its_own_memory(cut: Driver) -> None:
    cut.set("0/1", total=7 * GIB)
    assert all_gpus()[0].memory_mib == 7 * 1024


def test_the_command_shows_name_uuid_index_weight_and_why(driver: Driver) -> None:
    from click.testing import CliRunner

    from fsqueue.cli.gpus import gpus

    driver.add(0, "NVIDIA GeForce RTX 4090", "GPU-aaaa")
    driver.add(1, "NVIDIA Unheard 9", "GPU-bbbb")
    lines = CliRunner().invoke(gpus, []).stdout.splitlines()
    assert lines[0].split() == ["INDEX", "NAME", "UUID", "MEMORY", "WEIGHT", "WHY"]
    assert lines[1].split()[:1] == ["0"]
    assert "NVIDIA GeForce RTX 4090  GPU-aaaa" in lines[1]
    assert "1.50" in lines[1] and lines[1].endswith("RTX 4090 in the table")
    assert "1.00" in lines[2] and lines[2].endswith("not in the table: the default")


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles"])
def test_the_driver_is_not_asked_where_every_gpu_is_hidden(mixed: Driver, hidden: str) -> None:
    with patch.object(nvml, "_cards", side_effect=AssertionError("asked")):
        assert visible(hidden) == []
