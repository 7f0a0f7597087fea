"""The page: complete, self-contained, escaped, and without horizontal overflow on a phone."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

import hf_arch
from hf_arch.analysis.compare import compare_runs
from hf_arch.analysis.search import pareto_front
from hf_arch.cli.report import report_command
from hf_arch.core.errors import ConfigError
from hf_arch.report.diagram import diagram
from hf_arch.report.figures import figures
from hf_arch.report.page import MOST_ROWS_BESIDE, render, write_report
from tests.experiments.synthetic import ARCHITECTURES, write_run, write_suite

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
HOSTILE = '<script>alert("x")</script> & $x^2$ "quoted"'


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("results") / "suite")


@pytest.fixture(scope="module")
def wide_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(wide_suite(tmp_path_factory.mktemp("wide")), png=False).read_text()


@pytest.fixture(scope="module")
def page(suite: Path) -> str:
    return write_report(suite).read_text()


def wide_suite(root: Path) -> Path:
    """What strains a page: five sizes with two rates, hostile and endless names, long samples and reasons."""
    for i, width in enumerate((64, 128, 256, 512, 1024)):
        for seed in (1, 2, 3):
            for rate in (1e-3, 3e-3):
                write_run(
                    root,
                    f"attention_gla_no_gating-hidden_size-{width}-num_hidden_layers-{i}",
                    seed,
                    loss=1.2 + 2.5 * (width / 64) ** -0.3 + 0.004 * seed + (rate > 2e-3) * 0.1,
                    learning_rate=rate,
                    results={"architecture": "gla", "params_total": 12 * width * width, "sample": "endless" * 200},
                )
    write_run(root, HOSTILE.replace("/", "|"), 1, hypothesis=HOSTILE, results={"sample": HOSTILE})
    write_run(
        root, "x" * 90, 1, results={"status": "failed", "provenance": {"exit_reason": "boom " + "/long/path" * 40}}
    )
    return root


class References(HTMLParser):
    """Collects every attribute that makes a browser fetch something, and the tags that stay open."""

    VOID = ("meta", "br", "hr", "img", "input", "link", "wbr")

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self._attributes(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def _attributes(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src", "srcset", "xlink:href", "data", "action", "poster"):
                self.references.append(value or "")
            if name == "id":
                self.ids.append(value or "")


def read(page: str) -> References:
    parser = References()
    parser.feed(page)
    return parser


@pytest.mark.rest
def test_the_page_refers_to_nothing_outside(page: str) -> None:
    parsed = read(page)
    assert all(reference.startswith("#") for reference in parsed.references)
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", page))
    assert "@import" not in page and "<script" not in page


def test_the_page_is_well_formed(page: str) -> None:
    parsed = read(page)
    assert parsed.open == []
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {reference[1:] for reference in parsed.references} <= set(parsed.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(parsed.ids)


def test_the_page_holds_table_audit_verdicts_samples_and_provenance(page: str, suite: Path) -> None:
    comparison = compare_runs(suite)
    text = html.unescape(page)
    for finding in comparison.findings:
        assert finding.sentence in text
    for group in comparison.groups:
        assert f"{group.mean('final_val_loss'):.3f}" in text
        assert f"The {group.name} that speaks in measured line" in text
        assert group.reference.architecture_name in text
    assert ">supported</span> gla better than gpt2" in text
    assert text.count("0123456789") == 12  # the commit of every completed run
    assert "MemoryError: no room" in text


@pytest.mark.rest
def test_the_page_opens_with_the_answer(page: str, wide_page: str) -> None:
    """Headline, claims and one figure; the figure stands nowhere else; only then the audit and the table."""
    parts = ('class="headline"', 'id="claims"', "Difference to gpt2", 'id="audit"', 'id="table"', 'class="charts"')
    places = [page.index(part, page.index("<body>")) for part in parts]
    assert places == sorted(places)
    assert page.count("<figcaption>Difference to gpt2") == 1
    assert wide_page.index("<figure>") < wide_page.index('id="audit"')
    assert "28 checks found nothing</summary>" in page


def test_cards_show_what_differs_and_the_rest_once(page: str) -> None:
    cards = html.unescape(page[page.index('id="architectures"') : page.index('id="provenance"')])
    shown = cards[: cards.index("The same in all of them")]
    assert "<dt>dropout</dt>" not in shown and "<dt>in embeddings</dt>" not in shown
    assert shown.count("<dt>mixer</dt>") == shown.count("<dt>norm</dt>") == 4
    assert cards.count("<dt>dropout</dt><dd>residual 0</dd>") == 1


def test_pairs_say_what_confounds_them(page: str) -> None:
    pairs = re.sub(r"\s+|<[^>]*>", " ", page[page.index("All 6 pairs") :][:3000])
    assert re.search(r"confounded \([^)]*short convolution", pairs)


def test_pairs_that_are_undecided_say_what_their_seeds_can_show(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        for name in ("gla", "llama"):
            write_run(tmp_path, name, seed, loss=1.5 + 0.01 * seed ** len(name))
    page = write_report(tmp_path, png=False).read_text().replace("\xa0", " ")
    pairs = page[page.index("All 1 pair") :]
    assert re.search(r"undecided.*\n?.*3 seeds show a difference of [\d.]+ with 80 % power.* needs \d+ seeds", pairs)


def test_every_figure_is_described_in_words(page: str) -> None:
    labels = re.findall(r'<svg viewBox="[^"]+" role="img" aria-label="([^"]+)"', page)
    assert len(labels) == page.count("<figure>")
    assert all(len(label) > 30 for label in labels)
    assert not re.search(r"font-family|DejaVu", page[page.index("<main>") :])


def test_figures_follow_the_theme(page: str) -> None:
    body = page[page.index("<main>") :]
    assert not re.search(r"#[0-9a-fA-F]{6}\b", body), "a colour that neither light nor dark can change"
    assert "prefers-color-scheme: dark" in page


def test_user_text_is_escaped(wide_page: str) -> None:
    assert "<script" not in wide_page
    assert "&lt;script&gt;" in wide_page
    assert read(wide_page).open == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_enough_contrast(page: str, theme: str) -> None:
    blocks = re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL)
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[0]))
    if theme == "dark":
        colors |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[1]))
    for text in ("ink", "quiet"):
        for paper in ("paper", "card"):
            assert contrast(colors[text], colors[paper]) >= 4.5
    for kind in ("bad", "warn", "good"):
        assert contrast(colors[kind], colors[f"{kind}-paper"]) >= 4.5
    for index in range(8):
        assert contrast(colors[f"s{index}"], colors["card"]) >= 3.0  # what WCAG asks of lines and marks


def contrast(first: str, second: str) -> float:
    """WCAG's contrast ratio of two hexadecimal colours."""

    def luminance(color: str) -> float:
        channels = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_png_files_lie_beside_the_page(suite: Path, page: str) -> None:
    keys = {figure.key for found in figures(compare_runs(suite)).values() for figure in found}
    assert {path.stem for path in (suite / "figures").glob("*.png")} == keys
    assert {"means", "differences", "curve-tokens", "curve-flops", "curve-time", "pareto-state_bytes"} <= keys


def test_scaling_and_learning_rates_are_drawn_where_there_is_something_to_draw(tmp_path: Path, suite: Path) -> None:
    assert {"Scaling", "Learning rates"} <= figures(compare_runs(wide_suite(tmp_path))).keys()
    assert not {"Scaling", "Learning rates"} & figures(compare_runs(suite)).keys()


def test_no_front_over_a_cost_that_the_runs_are_equal_in(tmp_path: Path, suite: Path) -> None:
    drawn = {figure.key: figure for figure in figures(compare_runs(suite))["Quality against cost"]}
    assert set(drawn) == {"pareto-state_bytes", "pareto-decode_tokens_per_second"}
    assert "No plot against parameters, training FLOPs, training time, in which" in drawn["pareto-state_bytes"].note
    for name, size, speed in (("small", 1e6, 900.0), ("large", 2e6, 400.0)):
        write_run(tmp_path, name, results={"params_total": size, "train_tokens_per_second": speed})
    found = figures(compare_runs(tmp_path))["Quality against cost"]
    assert {"pareto-params_total", "pareto-time"} <= {figure.key for figure in found}


def test_a_curve_ends_at_the_number_of_the_table_or_says_why_not(tmp_path: Path) -> None:
    import numpy as np
    from matplotlib.figure import Figure as Canvas

    for seed in (1, 2):
        run = write_run(tmp_path / "fewer", "gla", seed, loss=1.6, config={"evaluation": {"sequences": 32}})
        write_run(tmp_path / "same", "gla", seed, loss=1.6)
        same = tmp_path / "same" / run.name / "metrics.jsonl"
        same.write_text("".join(same.read_text().splitlines(keepends=True)[:-1]) + '{"step": 200, "val_loss": 1.6}\n')
    fewer, same = (figures(compare_runs(tmp_path / name))["Loss curves"][0] for name in ("fewer", "same"))
    assert (
        "Open marks: the loss in the table, measured after training on all validation rows; the lines are scored"
        in (fewer.note)
    )
    assert "first 32." in fewer.note and "Open marks" not in same.note
    for figure in (fewer, same):
        assert figure.alt == "Groups at the end of training: gla 1.600."
        axes = Canvas().add_subplot()
        figure.draw(axes)
        assert any(np.isclose(line.get_ydata()[-1], 1.6, atol=1e-9) for line in axes.lines)


@pytest.mark.rest
def test_a_page_of_many_runs_opens_with_its_words_and_one_long_interval_hides_no_other(tmp_path: Path) -> None:
    for index in range(MOST_ROWS_BESIDE + 1):
        for seed in range(3):
            loss = 3.0 + 0.1 * index + (0.01 if index else 0.0) * seed + (2.0 * seed**2 if index == 3 else 0.0)
            write_run(tmp_path, f"run{index:02d}", seed=seed, loss=loss)
    comparison = compare_runs(tmp_path)
    drawn = {figure.key: figure for found in figures(comparison).values() for figure in found}
    assert "Intervals that end at the edge are longer" in drawn["differences"].note
    page = render(comparison, "many")
    assert page.index('id="audit"') < page.index('id="table"') < page.index("<figure")


def test_pareto_front_holds_what_nothing_beats() -> None:
    points = [(1.0, 5.0), (2.0, 3.0), (2.5, 3.5), (4.0, 1.0), (5.0, 1.0), (1.0, 6.0)]
    assert pareto_front(points) == [0, 1, 3]


def test_a_single_run_and_a_failed_suite_make_a_page(tmp_path: Path) -> None:
    write_run(tmp_path / "single", "gla", 1)
    assert "no vs baseline" not in write_report(tmp_path / "single", png=False).read_text()
    write_run(tmp_path / "failed", "gla", 1, results={"status": "failed", "final_val_loss": None})
    assert "No run completed" in write_report(tmp_path / "failed", png=False).read_text()


@pytest.mark.rest
def test_the_command_writes_where_it_is_told(suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "deep" / "page.html"
    assert report_command(str(suite), str(output)) == 0
    assert output.is_file()
    assert "page.html" in capsys.readouterr().out.replace("\n", "")


def test_mistakes_of_the_command_are_one_line(tmp_path: Path, suite: Path) -> None:
    with pytest.raises(ConfigError, match="missing does not exist"):
        report_command(str(tmp_path / "missing"), None)
    with pytest.raises(ConfigError, match="no runs in"):
        report_command(str(tmp_path), None)
    with pytest.raises(ConfigError, match="is a folder"):
        report_command(str(suite), str(tmp_path))


@pytest.mark.chromium
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium to lay the page out")
@pytest.mark.parametrize("kind", ["usual", "wide"])
def test_nothing_overflows_on_a_phone(tmp_path: Path, page: str, wide_page: str, kind: str) -> None:
    """Inside a frame 400 pixels wide (a headless window may refuse to be that narrow) no element leaves the page."""
    probe = """<script>addEventListener("load", () => {
        const wide = [...document.querySelectorAll("main *")].filter(e => !e.closest("svg, .scroll, pre")
            && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80));
        const root = document.documentElement;
        parent.document.title = [root.clientWidth, root.scrollWidth, ...wide].join("|");
    });</script>"""
    framed = html.escape({"usual": page, "wide": wide_page}[kind].replace("</head>", probe + "</head>"), quote=True)
    outer = tmp_path / "outer.html"
    outer.write_text(f'<title></title><iframe style="border:0" width="400" height="800" srcdoc="{framed}"></iframe>')
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000",
        "--dump-dom", outer.as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    match = re.search(r"<title>(\d+)\|(\d+)(.*?)</title>", dom, flags=re.DOTALL)
    assert match is not None, "the probe did not run"
    width, scrolled = int(match[1]), int(match[2])
    assert 370 < width <= 400  # less a scroll bar
    assert (scrolled, match[3]) == (width, "")


def test_the_suite_has_the_architectures_that_these_tests_speak_of() -> None:
    assert set(ARCHITECTURES) == {"gpt2", "llama", "gla", "mamba"}


def test_a_diagram_has_every_part_once_in_the_order_of_the_block() -> None:
    drawn = diagram(hf_arch_components("mixed"))
    assert re.findall(r"<text[^>]*>([^<]+)</text>", drawn) == [
        "token embedding, width 32", "4 ×", "rmsnorm", "gla", "mamba", "2 × attention", "(rope positions)", "rmsnorm",
        "glu", "rmsnorm", "head, 97 tokens",
    ]  # fmt: skip
    assert 'aria-label="4 layers of gla and mamba and 2 × attention, then glu' in drawn
    post = re.findall(r"<text[^>]*>([^<]+)</text>", diagram(hf_arch_components("chargpt")))
    assert post[-5:] == ["attention", "layernorm", "mlp", "layernorm", "head, 97 tokens"]
    assert "+ learned positions" in post
    assert diagram(hf_arch_components("mamba")).count("<circle") == 1  # no FFN, one residual
    assert "tied head, 97 tokens" in diagram(hf_arch_components("gpt2"))
    assert diagram({}) == "" and read(diagram({"mixer": HOSTILE, "ffn": "none", "norm": "x" * 90})).open == []


def hf_arch_components(name: str) -> dict[str, str]:
    return dict(hf_arch.describe(hf_arch.tiny_config(name))[1])
