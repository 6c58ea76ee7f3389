"""The page and the terminal form: untrusted text is escaped, also in a real browser."""

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

from cepo.inspection.console import PlainConsole
from cepo.inspection.inspect import all_variants
from cepo.inspection.page import credit_page
from cepo.inspection.terminal import print_credit
from cepo.inspection.view_model import Credit, InspectedGroup, InspectedRollout
from cepo.methods import CreditInputs
from cepo.references.groups import Fallback, Group, References, Rollout

HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'><!-- [bold red]"
VARIANTS = all_variants()
BY_NAME = {variant.name: variant for variant in VARIANTS}
GRPO, RLSD, PAPER = (BY_NAME[name] for name in ("grpo", "rlsd", "cepo lowest_reward"))


def shown(texts, *, solution="(1, 2)", question="How many?"):
    """A correct and an incorrect rollout with the given tokens; evidence differs between the methods."""
    count = len(texts)
    advantages = torch.tensor([0.7, -0.7])
    ids = tuple(range(count))
    rollouts = [
        Rollout("(1, 2)", 1.0, True, ids=ids, advantage=advantages[0].item()),
        Rollout(texts[0], 0.0, False, ids=ids, advantage=advantages[1].item()),
    ]
    inspected = []
    for row in range(2):
        credit = {}
        for number, variant in enumerate(VARIANTS):
            evidence = torch.zeros(1, count) if variant == GRPO else torch.linspace(-1, 1, count).unsqueeze(0) * number
            own = advantages[row : row + 1]
            student = torch.linspace(-3, -0.5, count)
            yes = torch.ones(1, count, dtype=torch.bool)
            inputs = CreditInputs(own, evidence, yes, yes[:, 0], own.sign(), ~yes)
            placed = variant.method.token_advantages(inputs, variant.options, 0)
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
                float(placed.scale[0]),
                float(placed.rollout_advantages[0]),
            )
        inspected.append(InspectedRollout(rollouts[row], row + 1, texts, student, credit, [True] * count))
    picture = Image.new("RGB", (30, 20), "red")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    return InspectedGroup(Group([{"role": "user", "content": content}], solution, rollouts), inspected)


def page_of(one, selected=PAPER):
    about = {"model": HOSTILE, "data": "somewhere"}
    return credit_page([one], title=HOSTILE, about=about, variants=VARIANTS, selected=selected)


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


@given(st.lists(st.text(), min_size=1, max_size=4), st.text(), st.text())
def test_any_text_is_escaped(texts, question, solution):
    page = page_of(shown(texts, question=question, solution=solution))
    assert page.count("<script") == 2
    assert page.count("<!--") == 0
    (group,) = data_of(page)["groups"]
    assert group["rollouts"][0]["tokens"] == texts
    assert group["messages"] == [{"role": "user", "text": question}]
    assert group["solution"] == solution


def test_the_page_has_the_numbers_and_loads_no_resources():
    one = shown(["a", "b", "c"])
    page = page_of(one)
    data = data_of(page)
    credit = one.rollouts[1].credit[PAPER]
    written = data["groups"][0]["rollouts"][1]["credit"][VARIANTS.index(PAPER)]
    assert written["evidence"] == pytest.approx(credit.evidence.tolist(), abs=1e-4)
    assert written["shift"] == pytest.approx(credit.shift.tolist(), abs=1e-4)
    assert written["advantages"] == pytest.approx(credit.advantages.tolist(), abs=1e-4)
    assert written["negatives"] == ["a"]
    assert data["groups"][0]["images"][0].startswith("data:image/png;base64,")
    assert not re.search(r"""(src|href)=["']?(http|//)|@import|url\(""", page.replace(json.dumps(HOSTILE), ""))


def test_numbers_that_json_lacks():
    one = shown(["a", "b"])
    one.rollouts[0].student[0] = float("-inf")
    one.rollouts[0].student[1] = float("nan")
    assert data_of(page_of(one))["groups"][0]["rollouts"][0]["student"] == [None, None]


@pytest.mark.parametrize("fallback", get_args(Fallback))
def test_every_fallback_has_a_description(fallback):
    one = shown(["a", "b"])
    credit = one.rollouts[0].credit[PAPER]
    one.rollouts[0].credit[PAPER] = replace(credit, references=References("(1, 2)", ("a",), fallback))
    (group,) = data_of(page_of(one))["groups"]
    assert " " in group["rollouts"][0]["credit"][VARIANTS.index(PAPER)]["fallback"]


def test_the_terminal_form():
    out = io.StringIO()
    print_credit(PlainConsole(file=out, width=100), [shown([HOSTILE, "7", "8"])], PAPER)
    printed = out.getvalue()
    assert "rollout 1: correct, reward 1.00, advantage +0.70; r- </script>" in " ".join(printed.split())
    assert "[bold red]" in printed  # text, not a style
    assert "token advantage" in printed


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Debian's headless Chromium, with its console log."""
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


def colors(browser):
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
    assert len(set(colors(browser))) == 3
    browser.find_element("css selector", "label[for='variant-0']").click()  # GRPO
    assert set(colors(browser)) == {"rgba(0, 0, 0, 0)"}
    assert "grpo" in browser.find_element("id", "variant-note").text
    # Arrow keys move between radio buttons.
    from selenium.webdriver.common.keys import Keys

    browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert "cepo lowest_reward" in browser.find_element("id", "variant-note").text
    assert len(set(colors(browser))) == 3
    assert browser.get_log("browser") == []


def test_in_a_browser_the_details_show_a_tokens_numbers(opened):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    one = shown(["one", " two", " three"])
    browser = opened(page_of(one))
    tokens = browser.find_elements("css selector", "#rollout-0-0 .token")
    ActionChains(browser).move_to_element(tokens[2]).perform()
    numbers = browser.find_element("id", "numbers").text.replace("\u2212", "-")
    credit = one.rollouts[0].credit[PAPER]
    for value in (credit.positive, credit.negative, credit.evidence, credit.advantages):
        assert f"{value[2].item():.3f}" in numbers
    browser.execute_script("arguments[0].focus()", tokens[0])
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert browser.switch_to.active_element.text.strip() == "two"
    assert '" two"' in browser.find_element("id", "numbers").text


def press(browser, *keys):
    """Send keys to the focused element."""
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def focus_first_token(browser):
    browser.execute_script("document.querySelector('#rollout-0-0 .token').focus()")


def test_in_a_browser_scrolling_under_the_mouse_does_not_select(opened):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser = opened(page_of(shown([f"word{number} " for number in range(400)])))
    token = browser.find_elements("css selector", "#rollout-0-0 .token")[40]
    ActionChains(browser).move_to_element(token).perform()
    assert "token 41 of 400" in browser.find_element("id", "details").text
    focus_first_token(browser)
    before = browser.execute_script("return scrollY")
    press(browser, Keys.END)
    # Browsers send mouse events shortly after scrolling.
    browser.execute_async_script("setTimeout(arguments[0], 300)")
    assert browser.execute_script("return scrollY") > before
    assert "Rollout 1, token 400 of 400" in browser.find_element("id", "details").text
    script = """
        const seen = document.activeElement.getBoundingClientRect();
        return [seen.top, document.getElementById("details").getBoundingClientRect().top - seen.bottom];
    """
    assert all(distance >= 0 for distance in browser.execute_script(script))  # visible above the details
    assert browser.execute_script("return document.querySelectorAll('.token[tabindex=\"0\"]').length") == 2
    assert browser.get_log("browser") == []


@pytest.fixture
def emulated(browser):
    """Emulate another screen or medium during a test."""

    def emulate(*, width=None, height=None, medium="", **features):
        if width:
            size = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": medium, "features": named})

    yield emulate
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


# Contrast of every text with its background (WCAG 2), smallest first.
CONTRASTS = """
    const numbers = color => { const [r, g, b, a = 1] = color.match(/[0-9.]+/g).map(Number); return [r, g, b, a]; };
    const over = ([r, g, b, a], under) => [r, g, b].map((part, index) => part * a + under[index] * (1 - a));
    const light = color => { const [r, g, b] = color.map(part => part / 255).map(
        part => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const behind = node => node ? over(numbers(getComputedStyle(node).backgroundColor), behind(node.parentElement))
        : [255, 255, 255];
    const found = [];
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const text = texts.currentNode, node = text.parentElement;
        if (!text.data.trim() || !node.getClientRects().length || node.closest("noscript, script")) continue;
        const paper = behind(node), style = getComputedStyle(node);
        const ink = over(numbers(node.closest("svg") ? style.fill : style.color), paper);
        const [low, high] = [light(ink), light(paper)].sort((one, other) => one - other);
        found.push([(high + 0.05) / (low + 0.05), text.data]);
    }
    return found.sort((one, other) => one[0] - other[0]);
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_contrast_is_sufficient_in_light_and_dark(scheme, opened, emulated):
    emulated(prefers_color_scheme=scheme)
    one = shown([f"word{number} " for number in range(12)])
    first = one.rollouts[0]
    one.rollouts[0] = replace(first, rollout=replace(first.rollout, trained=(False, *[True] * 11)))
    browser = opened(page_of(one))
    focus_first_token(browser)
    (least, text), *_ = browser.execute_script(CONTRASTS)
    assert least >= 4.5, text
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    ground = "return getComputedStyle(document.querySelector('.question img')).backgroundColor"
    assert browser.execute_script(ground) == "rgb(255, 255, 255)"
    assert len(set(colors(browser))) > 5
    emulated(medium="print", prefers_color_scheme=scheme)  # print is white
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(255, 255, 255)"
    assert not browser.find_element("id", "details").is_displayed()


@pytest.mark.parametrize(("width", "height"), [(360, 640), (320, 568), (640, 360)])
def test_in_a_browser_the_page_fits_a_phone(width, height, opened, emulated):
    emulated(width=width, height=height)
    texts = [HOSTILE, "7", "x" * 300, *(f" word{number}" for number in range(40))]
    browser = opened(page_of(shown(texts, question=HOSTILE * 3, solution="y" * 200)))
    overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script(overflow) == 0
    token = browser.find_elements("css selector", "#rollout-0-1 .token")[1]
    box = browser.execute_script("return arguments[0].getBoundingClientRect().toJSON()", token)
    assert box["height"] >= 24
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", token)
    box = browser.execute_script("return arguments[0].getBoundingClientRect().toJSON()", token)
    at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [at]})
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 60).until(lambda _: "token 2 of 43" in browser.find_element("id", "details").text)
    assert '"7"' in browser.find_element("id", "numbers").text
    tall = browser.execute_script("return document.getElementById('details').offsetHeight")
    assert tall <= 0.4 * height + 1
    script = "return [arguments[0], document.getElementById('details')].map(n => n.getBoundingClientRect())"
    tapped, details = browser.execute_script(script, token)
    assert tapped["bottom"] <= details["top"]
    assert browser.execute_script(overflow) == 0
