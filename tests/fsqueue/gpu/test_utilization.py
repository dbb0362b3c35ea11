from __future__ import annotations

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fsqueue.gpu.utilization import GPUMonitor, _number, _of_this_process, get_gpu_utilization
from tests.support.nvml.fake_driver import GIB, GPU_IS_LOST, NOT_SUPPORTED, Driver, install, unplug

UNKNOWN = dict.fromkeys(
    ["compute_percent", "memory_percent", "temperature", "power_watts"],
)
ANSWER = "0, GPU-a, 87, 12288, 24576, 64, 250.50"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = install(monkeypatch, tmp_path)
    driver.add(0, "NVIDIA GeForce RTX 3090", "GPU-a")
    driver.add(1, "NVIDIA A100-SXM4-80GB", "GPU-b", gib=80)
    return driver


def test_a_gpu_is_known_by_its_index_and_by_its_uuid(driver: Driver) -> None:
    driver.set(0, util=87, temperature=64, power=250_000, used=12 * GIB, total=24 * GIB)
    monitor = GPUMonitor()

    assert monitor.backend == "pynvml"
    assert monitor.available
    assert [gpu.uuid for gpu in monitor.gpus] == ["GPU-a", "GPU-b"]
    for device_id in (0, "GPU-a"):
        assert monitor.get_gpu_utilization(device_id) == {
            "compute_percent": 87.0,
            "memory_percent": 50.0,
            "temperature": 64.0,
            "power_watts": 250.0,
        }


def test_a_process_may_ask_without_a_monitor_of_its_own(driver: Driver) -> None:
    driver.set(0, util=87, temperature=64, power=250_000, used=12 * GIB, total=24 * GIB)
    _of_this_process.cache_clear()
    assert get_gpu_utilization("GPU-a") == GPUMonitor().get_gpu_utilization(0)
    _of_this_process().close()
    _of_this_process.cache_clear()


def test_one_question_is_asked_within_the_cache_time_and_another_after(
    driver: Driver, clock: Clock
) -> None:
    monitor = GPUMonitor(clock=clock)
    assert monitor.get_gpu_utilization("GPU-a")["compute_percent"] == 87.0

    driver.set(0, util=12)
    clock.now += 0.99
    assert monitor.get_gpu_utilization("GPU-a")["compute_percent"] == 87.0
    assert driver.calls("nvmlDeviceGetUtilizationRates") == 1

    clock.now += 0.01
    assert monitor.get_gpu_utilization("GPU-a")["compute_percent"] == 12.0
    assert driver.calls("nvmlDeviceGetUtilizationRates") == 2


def test_each_gpu_is_cached_by_itself(driver: Driver, clock: Clock) -> None:
    monitor = GPUMonitor(clock=clock)
    monitor.get_gpu_utilization("GPU-a")
    driver.set(1, util=3)
    assert monitor.get_gpu_utilization("GPU-b")["compute_percent"] == 3.0


def test_the_cache_time_can_be_chosen(driver: Driver, clock: Clock) -> None:
    monitor = GPUMonitor(cache_ttl_s=2.0, clock=clock)
    for _ in range(4):
        monitor.get_gpu_utilization(0)
        clock.now += 1.0
    assert driver.calls("nvmlDeviceGetUtilizationRates") == 2


def test_eight_threads_that_ask_at_once_cost_one_question(driver: Driver, clock: Clock) -> None:
    monitor = GPUMonitor(clock=clock)
    together = Barrier(8)

    def ask(_: int) -> object:
        together.wait(timeout=30)
        return monitor.get_gpu_utilization(0)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert answers == [answers[0]] * 8
    assert driver.calls("nvmlDeviceGetUtilizationRates") == 1


def test_an_answer_is_the_callers_to_change(driver: Driver, clock: Clock) -> None:
    monitor = GPUMonitor(clock=clock)
    monitor.get_gpu_utilization(0)["compute_percent"] = -1.0
    assert monitor.get_gpu_utilization(0)["compute_percent"] == 87.0


@pytest.mark.parametrize(
    ("function", "unknown"),
    [
        ("nvmlDeviceGetUtilizationRates", "compute_percent"),
        ("nvmlDeviceGetMemoryInfo", "memory_percent"),
        ("nvmlDeviceGetPowerUsage", "power_watts"),
    ],
)
def test_what_one_call_cannot_tell_is_unknown_and_the_rest_is_not(
    driver: Driver, function: str, unknown: str
) -> None:
    monitor = GPUMonitor()
    driver.set(0, **{function: NOT_SUPPORTED})
    answer = monitor.get_gpu_utilization(0)
    assert [name for name, value in answer.items() if value is None] == [unknown]


def test_a_lost_gpu_has_no_values(driver: Driver, clock: Clock) -> None:
    monitor = GPUMonitor(clock=clock)
    driver.set(1, nvmlDeviceGetHandleByUUID=GPU_IS_LOST)
    assert monitor.get_gpu_utilization("GPU-b") == UNKNOWN
    assert monitor.get_gpu_utilization("GPU-a")["power_watts"] == 250.0


def test_a_mig_instance_has_memory_and_no_utilisation_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = install(monkeypatch, tmp_path)
    driver.add(0, "NVIDIA A100-SXM4-40GB", "GPU-parent")
    driver.set(0, mig=1)
    driver.set("0/0", name="A100 MIG 1g.5gb", uuid="MIG-one", total=5 * GIB, used=GIB)
    assert GPUMonitor().get_gpu_utilization("MIG-one") == UNKNOWN | {"memory_percent": 20.0}


def test_a_percentage_that_cannot_be_one_is_unknown(driver: Driver) -> None:
    driver.set(0, util=2**32 - 1, used=25 * GIB, total=24 * GIB)
    driver.set(1, used=0, total=0)
    monitor = GPUMonitor()
    assert monitor.get_gpu_utilization(0)["compute_percent"] is None
    assert monitor.get_gpu_utilization(0)["memory_percent"] is None
    assert monitor.get_gpu_utilization(1)["memory_percent"] is None


def test_nought_is_a_value(driver: Driver) -> None:
    driver.set(0, util=0, used=0, temperature=0, power=0)
    assert GPUMonitor().get_gpu_utilization(0) == dict.fromkeys(UNKNOWN, 0.0)


@pytest.mark.parametrize("flags", [(), ("-DBEFORE_CUDA_13",)])
def test_the_temperature_is_asked_for_as_the_driver_knows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    driver = install(monkeypatch, tmp_path, *flags)
    driver.add(0, "NVIDIA L4", "GPU-a")
    assert GPUMonitor().get_gpu_utilization(0)["temperature"] == 64.0
    assert driver.calls("nvmlDeviceGetTemperatureV") == (not flags)
    assert driver.calls("nvmlDeviceGetTemperature") == bool(flags)


@pytest.mark.parametrize("device_id", [2, -1, 2**32, "GPU-", "", "MIG-none", "\0", "\ud800"])
def test_a_gpu_that_is_not_there_is_unknown(driver: Driver, device_id: int | str) -> None:
    assert GPUMonitor().get_gpu_utilization(device_id) == UNKNOWN


def test_a_closed_monitor_knows_nothing_and_lets_the_driver_go(driver: Driver) -> None:
    monitor = GPUMonitor()
    monitor.close()
    monitor.close()
    assert monitor.get_gpu_utilization(0) == UNKNOWN
    assert monitor.backend == "none"
    assert driver.calls("nvmlShutdown") == driver.calls("nvmlInitWithFlags")


def test_without_a_driver_nothing_is_known_and_nothing_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unplug(monkeypatch, tmp_path)
    monitor = GPUMonitor()
    assert monitor.backend == "none"
    assert not monitor.available
    assert monitor.get_gpu_utilization(0) == UNKNOWN


def by_smi(directory: Path, patch: pytest.MonkeyPatch, rows: str, clock: Clock) -> GPUMonitor:
    """A monitor that must ask nvidia-smi, which answers with `rows` and counts its questions."""
    (directory / "rows").write_text(rows)
    script = (
        f'case $1 in *memory.total) echo "0, GPU-a, NVIDIA L4, 24576"; exit;; esac\n'
        f'echo >> "{directory}/asked"; cat "{directory}/rows"'
    )
    unplug(patch, directory, script)
    return GPUMonitor(clock=clock)


def test_nvidia_smi_answers_where_the_library_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monitor = by_smi(tmp_path, monkeypatch, ANSWER, clock)
    assert monitor.backend == "nvidia-smi"
    for device_id in (0, "GPU-a"):  # one run of the program answers for both
        assert monitor.get_gpu_utilization(device_id) == {
            "compute_percent": 87.0,
            "memory_percent": 50.0,
            "temperature": 64.0,
            "power_watts": 250.5,
        }
    assert (tmp_path / "asked").read_text() == "\n"


@pytest.mark.parametrize(
    ("row", "unknown"),
    [
        ("0, GPU-a, [N/A], 12288, 24576, 64, 250.50", ["compute_percent"]),
        ("0, GPU-a, 87, [N/A], 24576, 64, 250.50", ["memory_percent"]),
        ("0, GPU-a, 87, 12288, 0, 64, 250.50", ["memory_percent"]),
        ("0, GPU-a, 87, 12288, 24576, [GPU is lost], ERR!", ["temperature", "power_watts"]),
        (
            "0, GPU-a, 101, 12288, 24576, nan, inf",
            ["compute_percent", "temperature", "power_watts"],
        ),
        ("0, GPU-a", list(UNKNOWN)),
        ("Unable to determine the device handle for GPU 0000:3B:00.0", list(UNKNOWN)),
        ("x, GPU-a, 87, 12288, 24576, 64, 250.50", list(UNKNOWN)),
        ("", list(UNKNOWN)),
    ],
)
def test_what_nvidia_smi_does_not_tell_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock, row: str, unknown: list[str]
) -> None:
    answer = by_smi(tmp_path, monkeypatch, row, clock).get_gpu_utilization("GPU-a")
    assert [name for name, value in answer.items() if value is None] == unknown


def test_an_nvidia_smi_that_failed_is_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monitor = by_smi(tmp_path, monkeypatch, "", clock)
    for _ in range(29):
        assert monitor.get_gpu_utilization(0) == UNKNOWN
        clock.now += 1.0
    assert (tmp_path / "asked").read_text() == "\n"

    (tmp_path / "rows").write_text(ANSWER)
    clock.now += 1.0
    assert monitor.get_gpu_utilization(0)["compute_percent"] == 87.0


@example("nan")
@example("-inf")
@example("1e999")
@given(st.text("0123456789.eE+-_naif[]/ ", max_size=8))
def test_a_number_is_finite_or_unknown(text: str) -> None:
    value = _number(text)
    assert value is None or math.isfinite(value)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers() | st.text("GPU-MIab01,\0\ud800é", max_size=8))
def test_no_device_id_raises(driver: Driver, device_id: int | str) -> None:
    assert set(GPUMonitor().get_gpu_utilization(device_id)) == set(UNKNOWN)


@pytest.mark.slow
def test_importing_the_monitor_does_not_import_pynvml(project: Path) -> None:
    modules = "fsqueue.gpu.utilization, fsqueue.scheduling.gpu_spec"
    program = f"import sys, {modules}; print('pynvml' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
