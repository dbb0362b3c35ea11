from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsqueue.errors import UsageError
from fsqueue.pool.names import SPOOL
from fsqueue.scheduling.gpu_spec import COUNT_MAX, SpoolSpec, parse_gpus, parse_weights, weighed
from tests.support.nvml.fake_driver import GIB, install, unplug


def brief(spec: str) -> list[tuple[str, str, float]]:
    return [(spool.name, spool.model, spool.weight) for spool in parse_gpus(spec)]


@pytest.mark.parametrize(
    ("spec", "spools"),
    [
        ("3090", [("gpu0", "RTX 3090", 1.0)]),
        (
            "4090x2,3090",
            [("gpu0", "RTX 4090", 1.5), ("gpu1", "RTX 4090", 1.5), ("gpu2", "RTX 3090", 1.0)],
        ),
        ("a100-80gb:1.4", [("gpu0", "A100", 1.4)]),
        ("cpu", [("cpu0", "cpu", 0.05)]),
        ("cpux2", [("cpu0", "cpu", 0.05), ("cpu1", "cpu", 0.05)]),
        ("left=3090", [("left", "RTX 3090", 1.0)]),
        ("left=3090,4090", [("left", "RTX 3090", 1.0), ("gpu1", "RTX 4090", 1.5)]),
        ("node7-=4090x2", [("node7-0", "RTX 4090", 1.5), ("node7-1", "RTX 4090", 1.5)]),
        ("cpu,3090,cpu", [("cpu0", "cpu", 0.05), ("gpu0", "RTX 3090", 1.0), ("cpu1", "cpu", 0.05)]),
        (" RTX 3090 , NVIDIA L4 : 2 x 1 ", [("gpu0", "RTX 3090", 1.0), ("gpu1", "L4", 2.0)]),
        ("h100:.5X2", [("gpu0", "H100", 0.5), ("gpu1", "H100", 0.5)]),
        ("l40sx1", [("gpu0", "L40S", 1.75)]),
        ("v100", [("gpu0", "V100", 0.75)]),
    ],
)
def test_each_entry_is_so_many_spools_of_a_model(
    spec: str, spools: list[tuple[str, str, float]]
) -> None:
    assert brief(spec) == spools


@pytest.mark.parametrize("spec", ["rtx3090", "RTX3090", "rtx3090x1", "rtx 3090"])
def test_the_x_of_rtx_is_no_count(spec: str) -> None:
    assert brief(spec) == [("gpu0", "RTX 3090", 1.0)]


def test_the_x_of_gtx_and_mx_is_no_count_either() -> None:
    assert brief("MX450:0.1") == [("gpu0", "MX450", 0.1)]
    assert brief("gtx1080:0.5x2") == [("gpu0", "gtx1080", 0.5), ("gpu1", "gtx1080", 0.5)]


def test_a_spool_knows_where_its_weight_is_from(caplog: pytest.LogCaptureFixture) -> None:
    given_, table, unknown = parse_gpus("3090:2,3090,Wonder 77")
    assert given_.why == "given"
    assert table.why == "from the table"
    assert unknown.why == "unknown model: the default"
    assert unknown.weight == 1.0
    assert "Unknown GPU 'Wonder 77'" in caplog.text


def test_a_given_weight_needs_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    parse_gpus("Wonder 78:2")
    assert not caplog.records


@pytest.mark.parametrize(
    ("spec", "quoted", "reason"),
    [
        ("", "''", "empty entry"),
        ("4090,", "'4090,'", "empty entry"),
        (",4090", "',4090'", "empty entry"),
        ("4090,,3090", "'4090,,3090'", "empty entry"),
        ("4090:0", "'4090:0'", "weight '0'"),
        ("4090:-1", "'4090:-1'", "weight '-1'"),
        ("4090:nan", "'4090:nan'", "weight 'nan'"),
        ("4090:inf", "'4090:inf'", "weight 'inf'"),
        ("4090:1e3", "'4090:1e3'", "weight '1e3'"),
        ("4090:", "'4090:'", "weight ''"),
        ("4090:9999999", "'4090:9999999'", "weight '9999999'"),
        ("4090:0.0000001", "'4090:0.0000001'", "weight '0.0000001'"),
        ("4090:1:2", "'4090:1:2'", "weight '1:2'"),
        ("4090:١", "'4090:١'", "weight '١'"),
        ("4090x0", "'4090x0'", "count '0'"),
        (f"4090x{COUNT_MAX + 1}", "'4090x4097'", "count '4097'"),
        ("4090x" + "9" * 30, "'4090x999", "count '9999"),
        ("4090x-1", "'4090x-1'", "count '-1'"),
        ("4090x1.5", "'4090x1.5'", "count '1.5'"),
        ("4090x2:1.5", "'4090x2:1.5'", "has the count before the weight"),
        ("2x4090", "'2x4090'", "write 4090x2"),
        ("3090, 2x RTX 4090", "'2x RTX 4090'", "write RTX 4090x2"),
        ("gpu1=3090,4090", "'gpu1'", "two spools"),
        ("a=3090,A=4090", "'A'", "two spools"),
        ("a0=3090,a=4090x2", "'a0'", "two spools"),
        ("=3090", "''", "cannot be a spool's name"),
        ("../x=3090", "'../x'", "cannot be a spool's name"),
        ("-a=3090", "'-a'", "cannot be a spool's name"),
        ("a" * 41 + "=3090", "'aaa", "cannot be a spool's name"),
        ("a" * 40 + "=3090x2", "'aaa", "too long for a spool's name"),
        ("a=b=3090", "'a=b=3090'", "names no model"),
        ("a=", "'a='", "names no model"),
        (":2", "':2'", "names no model"),
        ("x4", "'x4'", "names no model"),
        ("40/90", "'40/90'", "names no model"),
        ("40\n90", "'40\\n90'", "names no model"),
        ("four thousand and ninety" * 20, "'four thousand", "too long"),
        ("auto,cpu", "'auto'", "alone"),
        ("AUTO", "'AUTO'", "alone"),
        ("cpux4096,3090", "'cpux4096,3090'", "more than 4096 spools"),
        ("4090,@more", "'@more'", "names no model"),
        ("@/nowhere/at all", "'@/nowhere/at all'", "No such file"),
        ("@", "'@'", "No such file"),
        ("@/", "'@/'", "Is a directory"),
        ("@a\0b", "'@a\\x00b'", "not a text file"),
    ],
)
def test_what_makes_no_sense_is_quoted_and_a_good_example_shown(
    spec: str, quoted: str, reason: str
) -> None:
    with pytest.raises(UsageError) as refused:
        parse_gpus(spec)
    message = str(refused.value)
    assert f"--gpus: {quoted}" in message
    assert reason in message
    assert "For example: --gpus 4090x2,3090" in message


def test_as_many_spools_as_there_may_be() -> None:
    assert len(parse_gpus(f"cpux{COUNT_MAX}")) == COUNT_MAX


def test_the_example_in_a_refusal_is_good() -> None:
    with pytest.raises(UsageError) as refused:
        parse_gpus("")
    examples = str(refused.value).split("--gpus ")[1:]
    assert len(examples) == 3
    for example in examples:
        assert parse_gpus(example.removesuffix(" or "))


def test_a_file_has_an_entry_a_line(tmp_path: Path) -> None:
    path = tmp_path / "the gpus"
    path.write_text("# two hosts\n\n4090x2   # the new ones\n  left=3090:0.9\ncpu, cpu\n")
    assert brief(f"@{path}") == [
        ("gpu0", "RTX 4090", 1.5),
        ("gpu1", "RTX 4090", 1.5),
        ("left", "RTX 3090", 0.9),
        ("cpu0", "cpu", 0.05),
        ("cpu1", "cpu", 0.05),
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "names no GPU"),
        (b"# nothing\n\n", "names no GPU"),
        (b"4090\nauto\n", "alone"),
        (b"4090\n@again\n", "names no model"),
        (b"4090,\n", "empty entry"),
        (b"\xff\xfe4090\n", "not a text file"),
        (b"a" * 2_000_000, "too long"),
    ],
)
def test_a_file_without_gpus_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "gpus"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        parse_gpus(f"@{path}")


def test_auto_is_the_gpus_that_are_visible_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = install(monkeypatch, tmp_path)
    driver.add(0, "NVIDIA GeForce RTX 3090", "GPU-a")
    driver.add(1, "Tesla V100-SXM2", "GPU-b", gib=32)
    driver.add(2, "NVIDIA GeForce RTX 4090", "GPU-c")
    host = socket.gethostname()
    assert parse_gpus("auto", {"CUDA_VISIBLE_DEVICES": "2,1"}) == [
        SpoolSpec("gpu0", "RTX 4090", 1.5, f"from the table; GPU 2 of {host}", memory_gib=24),
        SpoolSpec("gpu1", "V100 32GB", 0.8, f"from the table; GPU 1 of {host}", memory_gib=32),
    ]
    assert len(parse_gpus("auto", {})) == 3


def test_auto_gives_each_instance_of_a_cut_card_a_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = install(monkeypatch, tmp_path)
    driver.add(0, "NVIDIA A100-SXM4-40GB", "GPU-a")
    driver.set(0, mig=1)
    for place in (0, 1):
        name = "NVIDIA A100-SXM4-40GB MIG 3g.20gb"
        driver.set(f"0/{place}", name=name, uuid=f"MIG-{place}", total=20 * GIB, used=0)
    assert [(spool.name, spool.weight) for spool in parse_gpus("auto", {})] == [
        ("gpu0", 0.51),
        ("gpu1", 0.51),
    ]


@pytest.mark.parametrize("visible", ["", "-1"])
def test_auto_without_a_visible_gpu_is_one_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    driver = install(monkeypatch, tmp_path)
    driver.add(0, "NVIDIA L4", "GPU-a")
    assert parse_gpus("auto", {"CUDA_VISIBLE_DEVICES": visible}) == [
        SpoolSpec("cpu0", "cpu", 0.05, "from the table")
    ]


def test_auto_without_a_driver_is_one_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unplug(monkeypatch, tmp_path)
    assert brief("auto") == [("cpu0", "cpu", 0.05)]


pieces = st.sampled_from(
    [
        *"=:x,@# .-_a09",
        "4090",
        "rtx",
        "cpu",
        "auto",
        "1.5",
        "nan",
        "x2",
        "gpu0=",
        "\0",
        "é",
        "\ud800",
    ]
)


@given(st.lists(pieces, max_size=12).map("".join) | st.text("4090x:,=@a. ", max_size=12))
def test_any_text_is_a_list_of_good_spools_or_a_usage_error(spec: str) -> None:
    try:
        spools = parse_gpus(spec, {"CUDA_VISIBLE_DEVICES": ""})
    except UsageError as error:
        assert "For example" in str(error)
        return
    assert spools
    assert len({spool.name for spool in spools}) == len(spools)
    for spool in spools:
        assert SPOOL.fullmatch(spool.name)
        assert spool.model
        assert 0 < spool.weight < float("inf")


@given(
    st.lists(st.tuples(st.sampled_from(["RTX 3090", "A100", "cpu"]), st.integers(1, 9)), min_size=1)
)
def test_what_is_written_is_what_is_planned(entries: list[tuple[str, int]]) -> None:
    spools = parse_gpus(",".join(f"{model}x{count}" for model, count in entries))
    assert [spool.model for spool in spools] == [m for m, count in entries for _ in range(count)]


# ---- --weight ----

PLANNED = [
    SpoolSpec("gpu0", "RTX 4090", 1.5, "from the table"),
    SpoolSpec("gpu1", "RTX 4090", 1.5, "from the table"),
    SpoolSpec("cpu0", "cpu", 0.05, "from the table"),
]


@pytest.mark.parametrize(
    ("texts", "weights"),
    [
        (["4090=1.6"], [1.6, 1.6, 0.05]),
        (["NVIDIA GeForce RTX 4090=1.6", "cpu=0.2"], [1.6, 1.6, 0.2]),
        (["gpu1=1.1"], [1.5, 1.1, 0.05]),
        (["gpu1=1.1", "RTX 4090=1.7"], [1.7, 1.1, 0.05]),
        (["gpu0=1.1,cpu0=.3"], [1.1, 1.5, 0.3]),
        ([], [1.5, 1.5, 0.05]),
    ],
    ids="model full-name-and-cpu spool spool-before-model list none".split(),
)
def test_a_weight_is_given_to_a_spool_or_to_a_model(texts: list[str], weights: list[float]) -> None:
    found = weighed(PLANNED, parse_weights(texts))
    assert [spec.weight for spec in found] == weights
    for spec, planned in zip(found, PLANNED, strict=True):
        assert (spec.why == "given by --weight") is (spec.weight != planned.weight)


def test_weights_may_stand_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_text("# measured on Friday\n4090 = 1.55\ncpu=0.1  # slow\n\n")
    assert parse_weights([f"@{path}"]) == {"4090": 1.55, "cpu": 0.1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("4090", "not NAME=WEIGHT"),
        ("=1.5", "not NAME=WEIGHT"),
        ("4090=fast", "above 0"),
        ("4090=0", "above 0"),
        ("4090=-1", "above 0"),
        ("4090=inf", "above 0"),
        ("@/no/such/file", "cannot be read"),
        ("3090=1.2", "neither a spool nor a model of this plan"),
    ],
)
def test_a_weight_that_makes_no_sense_is_refused_with_what_to_type(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        weighed(PLANNED, parse_weights([text]))
