"""The page and the terminal form: what a model or a dataset wrote stays text, in a real browser too."""

import io
import json
import re
import shutil
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from cepo.inspection.inspect import Credit, Inspected, all_variants
from cepo.inspection.page import credit_page
from cepo.inspection.shown import Shown
from cepo.inspection.terminal import print_credit
from cepo.methods import PlacementInputs
from cepo.references.groups import Attempt, Fallback, Group, References, Rollout

HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'><!-- [bold red]"
VARIANTS = all_variants()
BY_NAME = {variant.name: variant for variant in VARIANTS}
GRPO, RLSD, PAPER = (BY_NAME[name] for name in ("grpo", "rlsd", "cepo lowest_reward"))


def shown(texts, *, solution="(1, 2)", question="How many?"):
    """Two rollouts, a right and a wrong one, of the given tokens; evidence differs between the methods."""
    count = len(texts)
    attempts = [Attempt("(1, 2)", 1.0, True), Attempt(texts[0], 0.0, False)]
    advantages = torch.tensor([0.7, -0.7])
    rollouts = [Rollout(tuple(range(count)), advantage) for advantage in advantages.tolist()]
    inspected = []
    for row in range(2):
        credit = {}
        for number, variant in enumerate(VARIANTS):
            evidence = torch.zeros(1, count) if variant == GRPO else torch.linspace(-1, 1, count).unsqueeze(0) * number
            own = advantages[row : row + 1]
            student = torch.linspace(-3, -0.5, count)
            yes = torch.ones(1, count, dtype=torch.bool)
            inputs = PlacementInputs(own, evidence, yes, yes[:, 0], own.sign(), ~yes)
            placed = variant.method.place(inputs, variant.options, 0)
            positive = None if variant == GRPO else student
            negative = None if variant == GRPO else student - evidence[0]
            contexts = [] if variant == GRPO else ["(1, 2)", None if variant == RLSD else texts[0]]
            credit[variant] = Credit(
                References("(1, 2)", (texts[0],)),
                contexts,
                positive,
                negative,
                evidence[0],
                placed.advantages[0],
                placed.shift[0],
                placed.moved[0],
                placed.at_bound[0],
                float(placed.scale[0]),
                float(placed.rollout_advantages[0]),
            )
        inspected.append(Inspected(student, credit))
    picture = Image.new("RGB", (30, 20), "red")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    group = Group([{"role": "user", "content": content}], solution, attempts, rollouts)
    return Shown(group, inspected, [texts, texts], [[True] * count] * 2)


def page_of(one, selected=PAPER):
    about = {"model": HOSTILE, "data": "somewhere"}
    return credit_page([one], title=HOSTILE, about=about, variants=VARIANTS, selected=selected)


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


@given(st.lists(st.text(), min_size=1, max_size=4), st.text(), st.text())
def test_any_text_comes_through_and_none_of_it_is_markup(texts, question, solution):
    page = page_of(shown(texts, question=question, solution=solution))
    assert page.count("<script") == 2
    assert page.count("<!--") == 0
    (group,) = data_of(page)["groups"]
    assert group["rollouts"][0]["tokens"] == texts
    assert group["messages"] == [{"role": "user", "text": question}]
    assert group["solution"] == solution


def test_the_page_has_the_numbers_and_loads_nothing():
    one = shown(["a", "b", "c"])
    page = page_of(one)
    data = data_of(page)
    credit = one.inspected[1].credit[PAPER]
    written = data["groups"][0]["rollouts"][1]["credit"][VARIANTS.index(PAPER)]
    assert written["evidence"] == pytest.approx(credit.evidence.tolist(), abs=1e-4)
    assert written["shift"] == pytest.approx(credit.shift.tolist(), abs=1e-4)
    assert written["advantages"] == pytest.approx(credit.advantages.tolist(), abs=1e-4)
    assert written["negatives"] == ["a"]
    assert data["groups"][0]["images"][0].startswith("data:image/png;base64,")
    assert not re.search(r"""(src|href)=["']?(http|//)|@import|url\(""", page.replace(json.dumps(HOSTILE), ""))


def test_numbers_that_json_lacks():
    one = shown(["a", "b"])
    one.inspected[0].student[0] = float("-inf")
    one.inspected[0].student[1] = float("nan")
    assert data_of(page_of(one))["groups"][0]["rollouts"][0]["student"] == [None, None]


@pytest.mark.parametrize("fallback", get_args(Fallback))
def test_every_fallback_has_words(fallback):
    one = shown(["a", "b"])
    credit = one.inspected[0].credit[PAPER]
    one.inspected[0].credit[PAPER] = replace(credit, references=References("(1, 2)", ("a",), fallback))
    (group,) = data_of(page_of(one))["groups"]
    assert " " in group["rollouts"][0]["credit"][VARIANTS.index(PAPER)]["fallback"]


def test_the_terminal_form():
    out = io.StringIO()
    print_credit(Console(file=out, width=100), [shown([HOSTILE, "7", "8"])], PAPER)
    printed = out.getvalue()
    assert "rollout 1: right, reward 1.00, advantage +0.70; r- </script>" in " ".join(printed.split())
    assert "[bold red]" in printed  # text, not a style
    assert "token advantage" in printed


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Debian's headless Chromium; its console messages are kept."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if not driver or not chromium:
        pytest.skip("no chromium: apt install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1200,1400",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    yield started
    started.quit()


@pytest.fixture
def opened(browser, tmp_path):
    def open_page(page):
        path = tmp_path / "page.html"
        path.write_text(page, encoding="utf-8")
        browser.get(path.as_uri())
        return browser

    return open_page


def colours(browser):
    script = "return [...document.querySelectorAll('.tokens .token')].map(n => getComputedStyle(n).backgroundColor)"
    return browser.execute_script(script)


def test_in_a_browser_hostile_text_stays_text(opened):
    browser = opened(page_of(shown([HOSTILE, "<b>bold</b>", "\n", ""], question=HOSTILE, solution=HOSTILE)))
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.broken") is None
    assert browser.find_elements("css selector", "#main img[onerror], #main script, #main b b") == []
    assert browser.title == HOSTILE
    assert HOSTILE in browser.find_element("id", "main").text
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    # The picture is the only image.
    assert browser.execute_script("return [...document.images].map(i => i.naturalWidth)") == [30]


def test_in_a_browser_the_switch_changes_the_credit(opened):
    browser = opened(page_of(shown(["one", " two", " three"])))
    assert len(set(colours(browser))) == 3
    browser.find_element("css selector", "label[for='variant-0']").click()  # GRPO
    assert set(colours(browser)) == {"rgba(0, 0, 0, 0)"}
    assert "grpo" in browser.find_element("id", "variant-note").text
    # By keyboard: the arrow keys walk through the radio buttons.
    from selenium.webdriver.common.keys import Keys

    browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert "cepo lowest_reward" in browser.find_element("id", "variant-note").text
    assert len(set(colours(browser))) == 3
    assert browser.get_log("browser") == []


def test_in_a_browser_a_token_tells_its_numbers(opened):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    one = shown(["one", " two", " three"])
    browser = opened(page_of(one))
    tokens = browser.find_elements("css selector", "#rollout-0-0 .token")
    ActionChains(browser).move_to_element(tokens[2]).perform()
    numbers = browser.find_element("id", "numbers").text.replace("\u2212", "-")
    credit = one.inspected[0].credit[PAPER]
    for value in (credit.positive, credit.negative, credit.evidence, credit.advantages):
        assert f"{value[2].item():.3f}" in numbers
    browser.execute_script("arguments[0].focus()", tokens[0])
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert browser.switch_to.active_element.text.strip() == "two"
    assert '" two"' in browser.find_element("id", "numbers").text
