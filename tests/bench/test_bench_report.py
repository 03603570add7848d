"""What bench.report draws and tables is what was measured: nothing else, and nothing of it hidden."""

import json

import pytest

from bench import charts, records, report
from minilm.report.canvas import sheet

README = f"# Title\n\nBefore.\n\n{report.BEGIN}\nold\n{report.END}\n\nAfter.\n"


def op_row(provider, median, op="causal_attention_packed", which="forward", status="ok", version="", **shape):
    """As contest.Row tells itself: 1e9 operations, 4e6 bytes, a floor of 1 ms."""
    shape = shape or {"B": 2, "H": 3, "T": 64, "D": 16}
    case = " ".join([op, *(f"{k}={v}" for k, v in shape.items()), "float32"])
    return {
        "case": case, "op": op, "shape": shape, "dtype": "float32", "which": which, "provider": provider,
        "version": version, "status": status, "reason": "" if status == "ok" else "for a reason", "median": median,
        "p20": median * 0.9, "p80": median * 1.2, "host": None, "floor": 1e-3, "fraction": 1e-3 / median,
        "flops_per_s": 1e9 / median, "bytes_per_s": 4e6 / median, "peak_bytes": None,
    }  # fmt: skip


def train_row(label, T, tokens_per_s=None, status="ok", **more):
    kernels, mode, *_ = label.split()
    row = {"label": label, "kernels": kernels, "compiled": mode == "compiled", "context_length": T, "batch_size": 2}
    row |= {"status": status, "reason": "", "tokens_per_s": tokens_per_s, "mfu": None, "peak_bytes": None}
    seconds = tokens_per_s and 2 * T / tokens_per_s
    return row | {"p20": seconds, "p80": seconds, "step_s": seconds, "first_step_s": tokens_per_s and 7.5} | more


def results(ops=(), train=(), device="Abacus", **more):
    facts = {"device": device, "driver": "1.5", "versions": {"torch": "9.8.7", "triton": None}, "revision": "abc123"}
    return {"format": 1, "machine": facts | {"date": "2031-02-03T04:05:06Z"}, "ops": ops, "train": train} | more


@pytest.fixture
def written(tmp_path):
    """A call that writes results files and reports on them: (exit code, README)."""
    readme = tmp_path / "README.md"
    readme.write_text(README)

    def write(*files, names="abcdef"):
        paths = []
        for name, content in zip(names, files, strict=False):
            paths.append(tmp_path / f"{name}.json")
            paths[-1].write_text(content if isinstance(content, str) else json.dumps(content))
        arguments = [*map(str, paths), "--out", str(tmp_path / "results" / "figures"), "--readme", str(readme)]
        return report.main(arguments), readme.read_text()

    write.folder = tmp_path
    return write


def machine_of(tmp_path, content):
    path = tmp_path / "one.json"
    path.write_text(json.dumps(content))
    return records.read([path])[0]


def drawn(machine, name):
    with sheet():
        figure = charts.figures(machine)[f"{name}-{machine.slug}.png"]()
        figure.draw_without_rendering()
    return figure


def axes_of(figure):
    return [axes for part in figure.subfigs for axes in part.axes]


def texts(figure):
    """All that a reader of the figure reads."""
    found = [figure.get_supxlabel(), *(t.get_text() for legend in figure.legends for t in legend.get_texts())]
    for axes in axes_of(figure):
        found += [axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")]
        found += [t.get_text() for t in [*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels()]]
    return found


def table(text, head):
    """The cells of the table whose first heading is `head`, without its rule."""
    lines = text[text.index(f"| {head} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in [lines[0], *lines[2:]]]


LENGTHS = {T: {"B": 2, "H": 3, "T": T, "D": 16} for T in (64, 128, 256, 512)}
GPU = [
    op_row(provider, seconds * T / 64, version=version, **LENGTHS[T])
    for T in LENGTHS
    for provider, seconds, version in (("reference", 0.04, "1"), ("torch", 0.005, "1"), ("triton", 0.004, "1"),
                                       ("sdpa-flash", 0.003, "9.8.7"))
]  # fmt: skip


# The tables


def test_every_cell_of_the_table_is_a_number_of_the_data_or_a_quotient_of_two(written):
    _, text = written(results(GPU))
    shown = table(text, "case")
    assert shown[0] == ["case", "pass", "triton", "PyTorch", "best other", "ratio", "of floor"]
    assert [row[:2] for row in shown[1:]] == [[f"attention B=2 H=3 T={T} D=16 float32", "forward"] for T in (64, 512)]
    assert [row[2:] for row in shown[1:]] == [
        ["4 ms", "5 ms", "3 ms, sdpa-flash (torch 9.8.7)", "0.75", "25%"],
        ["32 ms", "40 ms", "24 ms, sdpa-flash (torch 9.8.7)", "0.75", "3%"],
    ]


def test_the_training_table_holds_tokens_mfu_memory_and_the_first_step(written):
    rows = [train_row("triton eager", 64, 1234.0, mfu=0.123, peak_bytes=3 * 2**29), train_row("torch eager", 64, 99.0)]
    _, text = written(results((), rows))
    assert table(text, "training step") == [
        ["training step", "T=64 B=2", "first step at T=64"],
        ["triton eager", "1,234, 12.3%, 1.5 GiB", "7.5 s"],
        ["torch eager", "99", "7.5 s"],
    ]


def test_a_training_step_stands_with_the_interval_of_its_median_and_against_nanogpt_mode_by_mode(written):
    rows = [train_row("torch eager", 64, 1280.0, low=0.08, high=0.16), train_row("torch compiled", 64, 2560.0)]
    rows += [train_row("nanogpt eager", 64, 640.0, low=0.16, high=0.4), train_row("nanogpt compiled", 64, 1920.0)]
    _, text = written(results((), rows))
    assert table(text, "training step")[2][1] == "1,280 (800 to 1,600)"
    for row in rows:
        row["dtype"] = "float32" if row["kernels"] == "nanogpt" else "bfloat16"
    rows.append(train_row("torch eager float32", 64, 960.0, dtype="float32"))
    rows.append(train_row("nanogpt graphs", 64, 1.0, reason="timed alone, not in turns"))
    _, text = written(results((), rows))
    sentence = (
        "Against nanoGPT at T=64 B=2, the steps per second of `--kernels torch`: in bfloat16 where nanoGPT has float32 "
    )
    assert f"{sentence}2.00 times eager [1.00 to 5.00], 1.33 times compiled; in float32 1.50 times eager (from" in text


def test_after_how_many_steps_compiling_has_repaid_itself_is_told(written):
    between = {"low": 0.09, "high": 0.11}, {"low": 0.04, "high": 0.06}
    rows = [train_row("torch eager", 64, 1280.0, first_step_s=0.5) | between[0]]
    rows += [train_row("torch compiled", 64, 2560.0) | between[1]]  # 7 s more before the first step, 50 ms less at each
    rows += [train_row("triton eager", 64, 1280.0), train_row("triton graphs", 64, 640.0)]
    rows += [train_row("reference compiled", 64, 5120.0), train_row("torch compiled", 128, 9999.0)]
    rows += [train_row("nanogpt eager", 64, 1.0), train_row("nanogpt compiled", 64, 2.0, reason="timed alone")]
    _, text = written(results((), rows))
    sentence = "before the first, at T=64 B=2, from the ends of both intervals: torch compiled 140 (100 to 230); "
    assert f"{sentence}triton graphs never." in text
    rows[1] |= {"first_step_s": 0.1, "high": 0.1}
    _, text = written(results((), rows))
    assert "torch compiled 0 (0 to never); triton graphs never." in text
    _, text = written(results((), [train_row("torch eager", 64, 1280.0)]))
    assert "repaid" not in text


def test_where_time_and_memory_go_is_told(written, tmp_path):
    step = {"preset": "p", "label": "torch eager", "context_length": 64, "batch_size": 2, "step_s": 0.003}
    parts = [("matrix products", 0.002, 7.0, 0.0005, [["aten::mm", 0.0015]]), ("between", 0.001, 0, None, [])]
    names = ("part", "seconds", "calls", "floor_s", "names")
    by_part = {"preset": "p", "context_length": 64, "batch_size": 2, "kernels": "torch", "part": "MLP"}
    by_part = [by_part | {"checkpoint_activations": again, "bytes": (3 - again) * 2**20} for again in (False, True)]
    longest = {"kernels": "torch", "budget_bytes": 2**31}
    longest = [longest | {"checkpoint_activations": w, "context_length": 1000 + w} for w in (False, True)]
    tried = {"kernels": "torch", "checkpoint_activations": True, "context_length": 2048, "counted_bytes": 2**30}
    tried = [tried | {"peak_bytes": 2**31, "step_s": 0.5, "status": "ok"}]
    tried.append(tried[0] | {"context_length": 4096, "peak_bytes": None, "step_s": None, "status": "out of memory"})
    more = {"breakdown": [step | dict(zip(names, part, strict=True)) for part in parts]}
    more |= {"memory": by_part, "contexts": longest, "contexts tried": tried}
    _, text = written(results([op_row("torch", 2e-3)], **more))
    head = ["kernels", "MiB a step", "computed again", "longest context", "computed again", "tried", "computed again"]
    assert table(text, "kernels") == [head, ["torch", "3", "2", "1,000", "1,001", "none", "2,048"]]
    assert "the longest context of one sequence in 2 GiB" in text
    full = (tmp_path / "results" / "abacus.md").read_text()
    assert "## Where the time of a step goes: p, 64 x 2, torch eager, 3 ms by the clock" in full
    assert table(full, "part")[1:3] == [
        ["matrix products", "2.000", "0.500", "4.0", "7", "aten::mm 1.50"],
        ["between", "1.000", "", "", "0", ""],
    ]
    assert "| all | 3 | 2 |" in full
    assert table(full, "kernels")[1:] == [
        ["torch, computed again", "2,048", "1.00", "2.00", "0.500"],
        ["torch, computed again", "4,096", "1.00", "out of memory", ""],
    ]


def test_on_a_cpu_ours_is_torch_and_is_held_against_the_reference(written):
    _, text = written(results([op_row("reference", 0.3), op_row("torch", 0.1)]))
    assert table(text, "case")[1][2:] == ["100 ms", "300 ms, reference", "3.00", "1%"]


def test_a_loss_is_a_ratio_below_one_however_small(written):
    rows = [op_row("torch", 0.01), op_row("triton", 0.01), op_row("sdpa-cudnn", 0.00999, version="9")]
    _, text = written(results(rows))
    assert table(text, "case")[1][4:6] == ["9.99 ms, sdpa-cudnn (torch 9)", "0.99"]


def test_a_wrong_result_has_no_time_anywhere(written, tmp_path):
    rows = [op_row("torch", 0.01), op_row("triton", 0.02), op_row("sdpa-cudnn", 0.00777, status="wrong")]
    _, text = written(results(rows))
    full = (tmp_path / "results" / "abacus.md").read_text()
    figure = drawn(machine_of(tmp_path, results(rows)), "attention")
    everything = "\n".join([text, full, *texts(figure)])
    assert "7.77" not in everything and "sdpa-cudnn in 1 of 1 rows" in text
    widths = [patch.get_width() for axes in axes_of(figure) for patch in axes.patches]
    assert widths == pytest.approx([1 / 0.02, 1 / 0.01])
    assert "wrong" in texts(figure) and "Not drawn, because wrong: sdpa-cudnn" in figure.get_supxlabel()
    assert [line for line in full.splitlines() if "sdpa-cudnn" in line and "| wrong |" in line]


def test_where_ours_is_wrong_the_table_says_so_and_claims_no_ratio(written):
    _, text = written(results([op_row("torch", 0.01), op_row("triton", 0.001, status="wrong")]))
    assert table(text, "case")[1][2:] == ["wrong", "10 ms", "10 ms, PyTorch 9.8.7", "–", "–"]


def test_which_cases_are_shown_does_not_depend_on_who_wins(written):
    _, text = written(results(GPU))
    slow = [row | {"median": row["median"] * (0.1 if row["shape"]["T"] == 128 else 10)} for row in GPU]
    _, other = written(results(slow))
    assert [row[0] for row in table(text, "case")] == [row[0] for row in table(other, "case")]


def test_every_row_and_every_reason_is_in_the_full_table(written, tmp_path):
    absent = op_row("flex", 1.0, status="failed")
    written(results([*GPU, absent], [train_row("triton eager", 64, status="out of memory")]))
    full = (tmp_path / "results" / "abacus.md").read_text()
    assert len(table(full, "case")) == 1 + len(GPU) + 1
    assert table(full, "case")[-1][2:4] + table(full, "case")[-1][-1:] == ["flex", "failed", "for a reason"]
    assert table(full, "training step")[1][:4] == ["triton eager", "64", "2", ""]


def test_running_out_of_memory_is_a_word_in_the_table_and_a_cross_at_its_length(written, tmp_path):
    rows = [train_row(label, T, 1e6 / T) for label in ("triton eager", "torch eager") for T in (64, 128, 256, 512)]
    rows += [train_row("reference eager", T, 1e5 / T) for T in (64, 128)]
    rows += [train_row("reference eager", T, status="out of memory") for T in (256, 512)]
    _, text = written(results((), rows))
    assert table(text, "training step")[0][1:4] == ["T=64 B=2", "T=256 B=2", "T=512 B=2"]
    assert table(text, "training step")[3][:4] == ["reference eager", "1,562", "out of memory", "out of memory"]
    figure = drawn(machine_of(tmp_path, results((), rows)), "training")
    crosses = [line for line in axes_of(figure)[0].lines if line.get_marker() == "x"]
    assert [line.get_xdata()[0] for line in crosses] == [256, 512]
    assert all(line.get_ydata()[0] < 0 for line in crosses) and "out of memory" in texts(figure)


@pytest.mark.parametrize("nested", [False, True])
def test_the_side_by_side_sentence_holds_the_ratio_and_its_interval(written, nested):
    ratio = {"geometric_mean": 1.234, "low": 1.111, "high": 1.357, "level": 0.9}
    found = {"ratio": ratio} if nested else ratio | {"ratio": 1.234}
    _, text = written(results([op_row("torch", 0.1)], side_by_side=found | {"pairs": [{}] * 7}))
    assert "1.23 times" in text and "90% interval 1.11 to 1.36, from 7 alternated pairs" in text


def test_the_last_line_names_device_driver_versions_revision_date_and_files(written):
    _, text = written(results(GPU[:2]), results(GPU[2:]))
    last = text[: text.index(report.END)].strip().splitlines()[-1]
    both = "`a.json` (revision abc123, 2031-02-03), `b.json` (revision abc123, 2031-02-03)"
    assert last == f"Abacus, driver 1.5, torch 9.8.7; from {both}."


# What is read


def test_later_files_replace_what_earlier_ones_measured_on_the_same_device(written):
    _, text = written(results([op_row("torch", 0.1)]), results([op_row("torch", 0.2)]))
    assert [row[2] for row in table(text, "case")] == ["torch", "200 ms"]
    _, text = written(results([op_row("torch", 0.1)]), results([op_row("torch", 0.2)], device="Slide rule"))
    assert [line for line in text.splitlines() if line.startswith("###")] == ["### Abacus", "### Slide rule"]


def test_files_of_other_formats_are_left_out_by_name(written, capsys):
    others = [{"source_sha256": "0", "kernels": []}, {"format": 2, "machine": {"device": "x"}}, "no json", [1]]
    code, text = written(results([op_row("torch", 0.1)]), *others)
    said = capsys.readouterr().out
    assert code == 0 and "100 ms" in text
    assert [f"{name}.json is left out" in said for name in "abcde"] == [False, True, True, True, True]


def test_without_any_usable_file_the_readme_is_as_it_was_and_the_exit_code_2(written, capsys):
    code, text = written({"kernels": []}, "no json")
    assert (code, text) == (2, README)
    assert capsys.readouterr().err.count("\n") == 1


def test_keys_it_does_not_know_and_parts_that_are_absent_do_no_harm(written):
    content = results([op_row("torch", 0.1) | {"new": [1]}], stages={"tests": {}}, tune=[{"status": "none"}])
    del content["train"], content["machine"]["driver"], content["machine"]["revision"]
    code, text = written(content)
    assert code == 0 and "100 ms" in text and "driver" not in text and "None" not in text


# What is written


def test_twice_gives_the_same_bytes(written, tmp_path):
    def files():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    content = results(GPU, [train_row("triton eager", T, 1e6 / T) for T in (64, 128, 256)])
    written(content)
    first = files()
    written(content)
    assert files() == first and sum(path.suffix == ".png" for path in first) == 2


def test_around_the_markers_nothing_changes(written):
    _, text = written(results(GPU))
    assert text.startswith(README[: README.index("old")]) and text.endswith(README[README.index(report.END) :])
    assert "old" not in text


@pytest.mark.parametrize(
    "readme", ["no markers\n", f"{report.END}\n{report.BEGIN}\n", f"{report.BEGIN}\n", README + README]
)
def test_without_both_markers_in_order_nothing_is_written(written, tmp_path, capsys, readme):
    (tmp_path / "README.md").write_text(readme)
    code, text = written(results(GPU))
    error = capsys.readouterr().err
    assert (code, text) == (2, readme)
    assert error.count("\n") == 1 and report.BEGIN in error and not (tmp_path / "results").exists()


# The figures


def test_a_curve_holds_every_point_of_its_provider_in_the_unit_of_the_axis(tmp_path):
    axes = axes_of(drawn(machine_of(tmp_path, results(GPU)), "attention"))[0]
    ours = next(line for line in axes.lines if line.get_linewidth() > 2)
    assert ours.get_xdata().tolist() == [64, 128, 256, 512]
    assert ours.get_ydata() == pytest.approx([1 / (0.004 * T / 64) for T in LENGTHS])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("sequence length T", "GFLOP/s")
    fast = [row | {"median": row["median"] * 1e-6, "flops_per_s": row["flops_per_s"] * 1e6} for row in GPU]
    assert axes_of(drawn(machine_of(tmp_path, results(fast)), "attention"))[0].get_ylabel() == "TFLOP/s"


def test_the_floor_is_drawn_in_every_panel_of_operations(tmp_path):
    norms = [op_row("torch", 0.1, op="rms_norm", which=which, rows=8, width=w) for w in (64, 128, 256)
             for which in ("forward", "backward")]  # fmt: skip
    machine = machine_of(tmp_path, results([*GPU, *norms]))
    for name, speed in (("attention", 1e9 / 1e-3 / 1e9), ("norms", 4e6 / 1e-3 / 1e9)):
        for axes in axes_of(drawn(machine, name)):
            floor = [line for line in axes.lines if line.get_linewidth() == charts.FLOOR["linewidth"]]
            assert len(floor) == 1 and floor[0].get_ydata() == pytest.approx([speed] * len(floor[0].get_xdata()))


def test_attention_of_q_k_v_apart_is_told_from_that_of_a_projection(written, tmp_path):
    apart = [op_row(row["provider"], row["median"] / 2, op="causal_attention", **row["shape"]) for row in GPU]
    _, text = written(results([*GPU, *apart]))
    assert [row[0] for row in table(text, "case")[1:]] == [
        *(f"attention B=2 H=3 T={T} D=16 float32" for T in (64, 512)),
        "attention (q, k, v apart) B=2 H=3 T=512 D=16 float32",
    ]
    figure = drawn(machine_of(tmp_path, results([*GPU, *apart])), "attention")
    headings = [part.get_suptitle() for part in figure.subfigs]
    assert headings == ["3 heads of width 16, batch 2, float32", "q, k, v apart, 3 heads of width 16, batch 2, float32"]
    packed, other = (next(x for x in axes.lines if x.get_linewidth() > 2) for axes in axes_of(figure))
    assert other.get_ydata() == pytest.approx(2 * packed.get_ydata())


def test_few_sizes_become_bars_with_their_numbers(tmp_path):
    rows = [op_row(name, 0.1 * T / 64, **LENGTHS[T]) for T in (64, 128) for name in ("reference", "torch")]
    figure = drawn(machine_of(tmp_path, results(rows)), "attention")
    axes = axes_of(figure)[0]
    assert [patch.get_width() for patch in axes.patches] == pytest.approx([10, 10, 5, 5])
    assert [text.get_text() for text in axes.texts] == ["10", "10", "5", "5"]
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "torch, 64",
        "reference, 64",
        "torch, 128",
        "reference, 128",
    ]


def test_the_panels_of_decoding_stand_by_batch_whatever_was_measured_first(tmp_path):
    rows = [op_row("torch", 0.1, op="decode_attention", B=B, H=3, T=64, D=16) for B in (1, 64, 8)]
    axes = axes_of(drawn(machine_of(tmp_path, results(rows)), "decode"))
    assert [one.get_title(loc="left") for one in axes] == ["batch 1", "batch 8", "batch 64"]


def test_the_cross_entropy_figure_holds_time_and_peak_memory_by_case(tmp_path):
    rows = [
        op_row(name, 0.05, op="linear_cross_entropy", which="both", rows=8, width=4, vocab=vocab) | {"peak_bytes": peak}
        for vocab in (50, 500)
        for name, peak in (("torch", 2**20 * vocab), ("triton", 2**19 * vocab))
    ]
    figure = drawn(machine_of(tmp_path, results(rows)), "cross_entropy")
    panels = axes_of(figure)
    assert [axes.get_xlabel() for axes in panels] == ["ms", "ms", "MiB", "MiB"]
    assert [[p.get_width() for p in axes.patches] for axes in panels] == [[50, 50], [50, 50], [25, 50], [250, 500]]


def test_in_grey_every_provider_has_dashes_and_a_marker_of_its_own():
    looks = [(dashes, marker) for _, dashes, marker in [*records.STYLES.values(), records.STRANGER]]
    assert len(set(looks)) == len(looks)


def test_the_legend_lies_outside_the_panels(tmp_path):
    figure = drawn(machine_of(tmp_path, results(GPU)), "attention")
    legend = figure.legends[0].get_window_extent()
    assert not any(legend.overlaps(axes.get_tightbbox()) for axes in axes_of(figure))


def test_a_figure_has_its_title_and_names_the_versions_of_the_peers(tmp_path):
    bars = [op_row("torch", 0.1), op_row("sdpa-flash", 0.1, version="9.8.7")]
    for rows, where in ((bars, "caption"), (GPU, "legend")):
        figure = drawn(machine_of(tmp_path, results(rows)), "attention")
        assert figure.legends[0].get_title().get_text() == "Causal attention"
        legend = [label.get_text() for label in figure.legends[0].get_texts()]
        said = {"caption": figure.get_supxlabel(), "legend": legend}
        assert "sdpa-flash (torch 9.8.7)" in said[where]


RUNNER = {
    **{"seeds": [1, 2, 3], "parameters": 800_000, "total_steps": 20, "steps": [0, 10, 20]},
    **{"curves": [[[0.0, 4.0, 8.0], [4.0, 3.0, 2.0]]] * 3, "losses": [4.0, 3.0, 2.0]},
    **{"low": [4.0, 3.0, 2.0], "high": [4.0, 3.0, 2.0]},
}
RACE = {
    "target": 2.5,
    "device": "Abacus",
    "runners": [
        RUNNER | {"name": "slow", "total_s": 8.0, "wall_s": [0, 4, 8.0], "to_target_s": 8.0, "by_seed_s": [8.0] * 3},
        RUNNER | {"name": "fast", "total_s": 2.0, "wall_s": [0, 1, 2.0], "to_target_s": 2.0, "by_seed_s": [2.0] * 3},
    ],
}


def test_a_race_is_told_with_the_device_that_it_was_run_on(written):
    code, text = written(results(ops=[op_row("torch", 2e-3)]), RACE)
    assert code == 0 and text.count("### Abacus") == 1
    assert "fast reached a validation loss of 2.5 in 2.0 s, slow in 8.0 s: 4.0 times as fast" in text
    assert "| fast | 0.80M | 3 | 20 | 100.0 | 2.0 s | 2.0000 (2.000 to 2.000) | 2.0 s |" in text


def test_the_size_at_which_nanogpt_ran_is_among_those_shown(tmp_path):
    rows = [train_row("torch eager", T, 1000.0) for T in (128, 64, 256)]
    rows += [train_row("nanogpt eager", 64, 500.0), train_row("nanogpt eager", 128, status="absent")]
    head, table = report.training_rows(machine_of(tmp_path, results(train=rows)))
    assert head[1:4] == ["T=64 B=2", "T=128 B=2", "T=256 B=2"]
    assert next(row for row in table if row[0] == "nanogpt eager")[1].startswith("500")


def tuned(problem, before, after):
    config = {"BLOCK": 64, "num_warps": 4}
    row = {"problem": problem, "before": config, "chosen": config | {"num_warps": 8}, "refused": 0, "candidates": 9}
    return row | {"before_ms": [before], "chosen_ms": [after], "speedup": before / after}


def test_what_tuning_changed_what_tests_said_and_what_a_reader_must_know_is_told(written):
    content = results(
        [op_row("triton", 2e-3), op_row("torch", 3e-3)],
        tune=[tuned("a", 0.9, 0.3), tuned("b", 0.4, 0.3), tuned("c", 0.5, 0.5), {"problem": "d", "status": "crashed"}],
        stages={"tests": {"pytest": "5 passed", "failed": ["one", "two"]}},
    )
    content["machine"]["notes"] = ["Measured on a Sunday."]
    code, readme = written(content)
    assert code == 0 and "\nMeasured on a Sunday.\n" in readme
    assert (
        "Block sizes tuned on this chip: 3 entries of the table, of which 2 changed and made their kernels 2.00 times "
        "as fast in the geometric mean, at most 3.00 times (a)." in readme
    )
    every = (written.folder / "results" / "abacus.md").read_text()
    assert "| a | BLOCK 64 warps 4 | 900 us | BLOCK 64 warps 8 | 300 us | 3.00 |" in every
    assert "| c | BLOCK 64 warps 4 | 500 us |  |  |  |" in every and "crashed" not in every
    assert "- tests, pytest: 5 passed\n- tests, failed: one; two\n" in every
