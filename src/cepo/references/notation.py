"""Canonical spelling of answers: Unicode, LaTeX commands, spaces, short fractions."""

import re
import unicodedata

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-", strict=True))
_SUPERSCRIPT = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_SIGNS = {
    **{"°": r"\degree ", "º": r"\degree ", "˚": r"\degree ", "×": r"\times ", "÷": r"\div ", "·": r"\cdot "},
    **{"⋅": r"\cdot ", "∙": r"\cdot ", "√": r"\sqrt ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne "},
    **{"±": r"\pm ", "∓": r"\mp ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∠": r"\angle ", "△": r"\triangle "},
    **{"≈": r"\approx ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "⌊": r"\lfloor ", "⌋": r"\rfloor "},
    **dict(zip("′’⟨⟩∣。，；：（）\u2044", "''()|.,;:()/", strict=True)),
    "″": "''",
}
_TOKEN = re.compile(r"\\\\|\\[A-Za-z]+|\\.|\s+|.", re.DOTALL)
_BLANKS = frozenset(("\\ ", *r"\, \; \: ~ \quad \qquad \thinspace \enspace \space".split()))
_REMOVED = frozenset(
    r"\! \left \right \middle \big \Big \bigg \Bigg \bigl \bigr \Bigl \Bigr \displaystyle \textstyle \scriptstyle "
    r"\limits \nolimits \strut \mathstrut \rm \bf \it \bfseries \boldmath \tiny \small \normalsize \large \Large "
    r"\LARGE \huge \Huge \footnotesize \( \) \[ \] $ `".split()
)
_FRACTIONS = frozenset(r"\binom \dbinom \tbinom \frac \dfrac \tfrac \cfrac \sfrac \nicefrac".split())
_TEXTS = frozenset(
    r"\text \textbf \textit \textrm \textsf \texttt \textup \textnormal \mathrm \mathbf \mathit \mathsf \mathnormal "
    r"\mathbin \mathop \mathord \operatorname \mbox \hbox \boldsymbol \bm \emph \underline \boxed \fbox "
    r"\ensuremath".split()
)
_RENAMED = {
    **{r"\leq": r"\le", r"\geq": r"\ge", r"\leqslant": r"\le", r"\geqslant": r"\ge", r"\neq": r"\ne", r"\lt": "<"},
    **{r"\gt": ">", r"\%": "%", r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lparen": "(", r"\rparen": ")", r"\&": " and "},
    **{r"\lbrack": "[", r"\rbrack": "]", r"\lvert": "|", r"\rvert": "|", r"\vert": "|", r"\mid": "|", r"\colon": ":"},
    **{r"\lor": " or ", r"\vee": " or ", r"\land": " and ", r"\varnothing": r"\emptyset", r"\#": "", r"\_": "_"},
    **{r"\dots": "...", r"\ldots": "...", r"\cdots": "...", r"\ast": r"\cdot", r"\infin": r"\infty"},
    **{r"\simeq": r"\approx", r"\thickapprox": r"\approx", r"\measuredangle": r"\angle", r"\langle": "("},
    **{r"\rangle": ")", r"\textpm": r"\pm", r"\$": r"\dollar", r"\implies": r"\Rightarrow", r"\union": r"\cup"},
    **{r"\bigcup": r"\cup", r"\textdegree": r"\degree"},
}
COMMAND = re.compile(r"\\[A-Za-z]+")
_LENGTH = re.compile(
    r"\\(?:mkern|mskip|kern|hspace\*?|vspace|[vh]?phantom)\s?(?:\{[^{}]*\}|-?[\d.]+ ?(?:mu|em|ex|pt|mm|cm))"
)
_DEEPEST = 40


def plain(answer: str) -> str:
    r"""An answer in canonical LaTeX.

    ``½`` and ``\tfrac12`` become ``\frac{1}{2}``, ``45°`` and ``45 ^ { \circ }`` become ``45\degree``; ``\mathrm{cm}``
    becomes ``\text{cm}``. Commands for size, spacing and brackets, and redundant spaces, are removed.
    """
    answer = _as_latex(answer)
    text = _LENGTH.sub(" ", re.sub(r"(\\\\)\[[^\]]{1,8}\]", r"\1", answer))
    text = _SUPERSCRIPT.sub(lambda found: "^{" + "".join(map(_SUPERSCRIPTS.__getitem__, found[0])) + "}", text)
    if not text.isascii():
        text = "".join(map(_ascii, text))
    tokens = [" " if token in _BLANKS or token.isspace() else token for token in _TOKEN.findall(text)]
    return _tidy(_spell_group([token for token in reversed(tokens) if token not in _REMOVED], 0))


_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{(?:cases|aligned|align\*?|gathered|split)\}")
_COLOR = re.compile(r"\\(?:textcolor|color)\{[a-z]+\}|\\tag\{[^{}]*\}|\\therefore|\\because")
_PLAIN_WORDS = (
    (re.compile(r"(?<![A-Za-z\\])sqrt\s?(?=[({0-9])"), r"\\sqrt"),
    (re.compile(r"(?<![A-Za-z\\])(pi|theta|alpha|beta)(?![A-Za-z])"), r"\\\1 "),
    (re.compile(r"(?<![A-Za-z\\])(sin|cos|tan|log|ln)(?=\s?[(0-9xynt]\b|\s[xynt]\b|\()"), r"\\\1 "),
    (re.compile(r"(?<![A-Za-z\\])infinity(?![A-Za-z])"), r"\\infty "),
    (re.compile(r"(?<=\S)\*\*(?=\S)"), "^"),
    (re.compile(r" per ?cent\b"), "%"),
    # 3/4 \\pi is three quarters of pi; math-verify parses a/b c as a/(bc).
    (re.compile(r"(?<![\w.}/])(\d+)/(\d+)(?=\s?\\[a-z])"), r"\\frac{\1}{\2}"),
)


def _as_latex(answer: str) -> str:
    """Plain-text mathematics and layout as LaTeX."""
    if answer.count("$") == 1:  # an amount of money, not a delimiter
        answer = re.sub(r"\\?\$\s?(?=\d)", r"\\dollar ", answer)
    for sign, word in (("\u20ac", "euros"), ("\u00a3", "pounds sterling")):
        answer = re.sub(rf"{sign}\s?([\d.,]+)", rf"\1 {word}", answer)
    if _ENVIRONMENT.search(answer):
        answer = _ENVIRONMENT.sub("", answer).replace("&", "").replace(r"\\", ", ")
    answer = _COLOR.sub(" ", answer).replace(" != ", r" \ne ")
    for pattern, replacement in _PLAIN_WORDS:
        answer = pattern.sub(replacement, answer)
    return answer


def _ascii(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    if character.isascii():
        return character
    name = unicodedata.name(character, "")
    if name.startswith("GREEK SMALL LETTER ") and name.count(" ") == 3:
        return f"\\{name.rpartition(' ')[2].lower()} "
    if name.startswith("VULGAR FRACTION"):
        above, _, below = unicodedata.normalize("NFKC", character).partition("\u2044")
        return f" \\frac{{{above}}}{{{below}}}"
    folded = unicodedata.normalize("NFKC", character)
    return folded if folded.isascii() else character


# Tokens are in reverse order, so the next token is the last of the list.
def _skip_blanks(tokens: list[str]) -> None:
    while tokens and tokens[-1] == " ":
        tokens.pop()


def _take_parentheses(tokens: list[str]) -> list[str] | None:
    """Remove a leading ``(...)`` and return the tokens inside; None, leaving the tokens, if there is none."""
    depth = 0
    for place in reversed(range(len(tokens))):
        depth += (tokens[place] == "(") - (tokens[place] == ")")
        if depth <= 0:
            break
    if depth or tokens[-1:] != ["("]:
        return None
    inside = tokens[place + 1 : -1]
    del tokens[place:]
    return inside


def _spell_group(tokens: list[str], depth: int) -> str:
    """The rest of a group in canonical spelling; consumes its closing brace."""
    parts: list[str] = []
    while tokens and (token := tokens.pop()) != "}":
        parts.append(_spell(token, tokens, depth))
    return "".join(parts)


def _spell(token: str, tokens: list[str], depth: int) -> str:
    """A token in canonical spelling; consumes its arguments."""
    if token == "{":
        inside = _spell_group(tokens, depth + 1) if depth < _DEEPEST else ""
        return inside if inside in (",", ":", ";", ".", "=", "-", "+") else "{" + inside + "}"  # 1{,}234, 3{:}45
    if token in _FRACTIONS:
        above = _spell_argument(tokens, depth)
        token = r"\binom" if "binom" in token else r"\frac"
        return rf"{token}{{{above}}}{{{_spell_argument(tokens, depth)}}}"
    if token == r"\sqrt":
        _skip_blanks(tokens)
        if tokens[-1:] == ["["]:
            tokens.pop()
            index = ""
            while tokens and (token := tokens.pop()) != "]":
                index += token
            return rf"\sqrt[{index.strip()}]{{{_spell_argument(tokens, depth)}}}"
        if (root := _take_parentheses(tokens)) is not None:  # sqrt(3), as programs write it
            return rf"\sqrt{{{_spell_group(root, depth + 1)}}}"
        return rf"\sqrt{{{_spell_argument(tokens, depth, whole_number=True)}}}"
    if token in _TEXTS:
        inside = _spell_argument(tokens, depth)
        # `\mathbf{x = 3}` and `\textbf{31}` are formulas, `\mathrm{m/s^2}` is text.
        return inside if re.search(r"[=\\]|^[\s\d.,:;+-]*$", inside) else rf"\text{{{inside}}}"
    if token == "^":
        _skip_blanks(tokens)
        if (exponent := _take_parentheses(tokens)) is not None:  # x^(n+1)
            return f"^{{{_spell_group(exponent, depth + 1)}}}"
        power = _spell_argument(tokens, depth, whole_number=True).strip()
        if power in (r"\circ", r"\degree", "o", r"\text{o}", "0 \\circ"):
            return r"\degree "
        return {r"\prime\prime": "''", r"\prime": "'"}.get(power, f"^{{{power}}}")
    token = _RENAMED.get(token, token)
    return f"{token} " if token[:1] == "\\" and token[-1].isalpha() else token


def _spell_argument(tokens: list[str], depth: int, *, whole_number: bool = False) -> str:
    """The argument of a command: a group, a command with its arguments, or one character (or integer)."""
    _skip_blanks(tokens)
    if not tokens or tokens[-1] == "}":
        return ""
    token = tokens.pop()
    if whole_number and (token == "-" or token.isdigit()):
        while tokens and tokens[-1].isdigit():
            token += tokens.pop()
        return token
    if depth > _DEEPEST:
        return ""
    return (_spell_group(tokens, depth + 1) if token == "{" else _spell(token, tokens, depth + 1)).strip()


_MULTIPLE = re.compile(r"(\d) ?(?:\\text\{\s?)?(thousand|million|billion|trillion)\b\}?", re.IGNORECASE)
_ZEROS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_MEANINGLESS_SPACE = re.compile(r"(?<=[^A-Za-z0-9}.,;])\s+|\s+(?=[^A-Za-z0-9\\{])")
_AFTER_COMMAND = re.compile(r"(\\[A-Za-z]+)\s+(?=[^A-Za-z])")


def _tidy(text: str) -> str:
    """Keep only spaces that separate words, numbers or commands."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"(^|[(\[,{]\s?)\+\s?(?=[\d\\.(a-zA-Z])", r"\1", text)  # (3, +\infty)
    text = _MULTIPLE.sub(lambda found: rf"{found[1]}\cdot 10^{{{_ZEROS[found[2].lower()]}}}", text)
    # `\pi r`, where the space ends the command, and `3 \pi` are kept; `( 1 , 2 )` becomes `(1,2)`.
    return _AFTER_COMMAND.sub(r"\1", _MEANINGLESS_SPACE.sub("", text))


def without_text_commands(text: str) -> str:
    r"""An answer as words: `\text{(E) } 12` becomes `(E) 12`."""
    for _ in range(4):
        if r"\text{" not in text:
            break
        text = re.sub(r"\\text\{((?:[^{}]|\{[^{}]*\})*)\}", r" \1 ", text)
    return re.sub(r"\s+", " ", text).strip()


def split_outside(text: str, separators: re.Pattern[str]) -> list[str]:
    """The parts of a text between separators outside of brackets and braces."""
    parts, start, depth = [], 0, 0
    position = 0
    while position < len(text):
        character = text[position]
        if character == "\\" and text[position : position + 2] in (r"\{", r"\}"):
            depth += 1 if text[position + 1] == "{" else -1
            position += 2
            continue
        if character in "{([":
            depth += 1
        elif character in "})]":
            depth -= 1
        elif depth == 0 and (found := separators.match(text, position)) and found.end() > position:
            parts.append(text[start:position])
            start = position = found.end()
            continue
        position += 1
    return [*parts, text[start:]]
