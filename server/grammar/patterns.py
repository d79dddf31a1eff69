r"""Patterns of a schema, from the dialect of JSON Schema (ECMA-262) to that of the grammar library.

Called by ``schema``. The two read many things alike and some not: ``.`` and ``\s``, a bracket within brackets, ``\<``,
``&&``. Everything that comes out has been read here, in one pass, and means to the library what it means to
ECMA-262; what only one of them knows is refused. There is one liberty: of texts that ECMA-262, Python and Rust tell
apart by their idea of white space, none is matched.

Look-around is none of the library's, but a pattern that begins with it, as those for passwords do, is the same as
several patterns: ``^(?=X)(?!Y)Z`` is ``^X`` and not ``^Y`` and ``^Z``. The first comes out so; the second if Y is as
simple as those that people write.
"""

from __future__ import annotations

import re

from server.grammar.quantities import NotKept

DOT = r"[^\n\r\x{2028}\x{2029}]"
SPACE = r"\t\n\x{0b}\f\r \x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"
"""What is white space to all; and what it is to any."""
ANY_SPACE = SPACE + r"\x{1c}-\x{1f}\x{85}\x{feff}"
NUL = r"\x{0}"
"""No answer can hold it: it would have to be escaped by its number, and no such escape is allowed (``forms``). And a
class that has it allows, to the library, every escape there is, so quotes and backslashes too."""
NO_NUL = "has the character NUL, which no answer can hold"
MAX_CHARS = 4096

_TOKEN = re.compile(
    r"""
    \\(?:u\{(?P<brace>[0-9A-Fa-f]{1,6})\}
      | u(?P<high>[dD][89abAB][0-9A-Fa-f]{2})\\u(?P<low>[dD][c-fC-F][0-9A-Fa-f]{2})
      | u(?P<unicode>[0-9A-Fa-f]{4}) | x(?P<hex>[0-9A-Fa-f]{2}) | c(?P<control>[A-Za-z])
      | (?P<property>[pP]\{\w{1,40}\}) | (?P<zero>0(?![0-9])) | (?P<escaped>.))
  | \(\?(?P<special><?[=!]|P?<\w{1,64}>|:|i:|i\)|[^()]{0,8})
  | \{[0-9]+(?:,[0-9]*)?\}
  | (?P<bad_repeat>\{,?[0-9])
  | .
    """,
    re.VERBOSE | re.DOTALL,
)
STRUCTURE = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|.", re.DOTALL)
_META = frozenset(r"\.+*?()|[]{}^$#&-~")
_EVERYTHING = (r"\s\S", r"\S\s", r"\d\D", r"\D\d", r"\w\W", r"\W\w")
_PLAIN_ESCAPES = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11}
_LEADING = re.compile(r"\(\?(?P<negative>[=!])")
_ATOM = r"(?:\\[^0-9A-Zac-rt-vx-z]|[^\\\[\](){}.*+?|^$]|\[[^^\\\[\]][^\\\[\]]*\])"
"""One of certain characters: escaped, itself, or in plain brackets; also ``\\s``, ``\\w``."""
_ONLY = re.compile(rf"\^?(?P<atom>{_ATOM})\*\$", re.DOTALL)
_NOT_AHEAD = re.compile(rf"(?P<any>\.\*)?(?P<atom>{_ATOM})(?P<twice>(?P=atom))?", re.DOTALL)


def kept_patterns(pattern: str) -> list[str]:
    """Patterns that together are ``pattern``, as the library reads them.

    Raises:
        NotKept: it has what the library does not know, or nobody does.
    """
    if len(pattern) > MAX_CHARS:
        raise NotKept(f"has more than {MAX_CHARS} characters")
    ahead: list[str] = []
    if not pattern.startswith("^") or not _LEADING.match(pattern, 1):
        return [_Reader(pattern).read()]
    rest = 1
    while match := _LEADING.match(pattern, rest):
        end = _group_end(pattern, rest)
        inner = pattern[match.end() : end - 1]
        ahead.append(_never(inner) if match["negative"] == "!" else f"^(?:{inner})")
        rest = end
    if _has_alternatives(pattern[rest:]):
        raise NotKept("has look-ahead before alternatives; put them into a group")
    return [_Reader(part).read() for part in [*ahead, "^" + pattern[rest:]]]


def _never(inner: str) -> str:
    """A pattern for the texts that do not begin with ``inner``."""
    if inner == "$":
        return r"^[\s\S]"
    if match := _ONLY.fullmatch(inner):
        return _other(match["atom"])
    match = _NOT_AHEAD.fullmatch(inner)
    if match is None or (match["twice"] and not match["any"]):
        raise NotKept("has a negative look-ahead that is not the same as a plain pattern")
    atom = match["atom"]
    other = _other(atom)
    if not match["any"]:
        return rf"^(?:{other}[\s\S]*)?$"
    return f"^(?:{atom}?{other})*{atom}?$" if match["twice"] else f"^{other}*$"


def _other(atom: str) -> str:
    """All characters but those of an atom."""
    return f"[^{atom[1:-1] if atom.startswith('[') else atom}]"


def _group_end(pattern: str, start: int) -> int:
    """Where the group ends that begins there."""
    depth = 0
    for match in STRUCTURE.finditer(pattern, start):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if not depth:
            return match.end()
    raise NotKept("has a group without an end")


def _has_alternatives(pattern: str) -> bool:
    """Whether it has any that are not within a group."""
    depth = 0
    for match in STRUCTURE.finditer(pattern):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if match[0] == "|" and not depth:
            return True
    return False


class _Reader:
    """Reads a pattern once, and writes it again."""

    def __init__(self, pattern: str) -> None:
        self._pattern, self._at = pattern, 0

    def read(self) -> str:
        parts = []
        while (match := self._next()) is not None:
            parts.append(self._outside(match))
        return "".join(parts)

    def _next(self) -> re.Match[str] | None:
        match = _TOKEN.match(self._pattern, self._at)
        if match is not None:
            self._at = match.end()
        return match

    def _outside(self, match: re.Match[str]) -> str:
        text = match[0]
        if match["bad_repeat"]:
            raise NotKept("has a repetition without a lower bound; write {0,n}")
        if match["special"] is not None:
            return self._group(match["special"], match.start())
        if text == "[":
            return self._brackets()
        if text == ".":
            return DOT
        if text == "\0":
            raise NotKept(NO_NUL)
        if text in "{}]":
            return "\\" + text
        if text.startswith("\\"):
            return self._escape(match, inside=False)
        return text

    def _group(self, special: str, start: int) -> str:
        if special == "i)" and start == 0:
            return "(?i)"
        if special == "i:":
            return "(?i:"
        if special in ("=", "!", "<=", "<!"):
            raise NotKept("has look-around, which is kept only as (?=...) at the start, after ^")
        if special == ":" or special.endswith(">"):
            return "(?:"
        raise NotKept(f"has a group that begins with (?{special[:4]}, which is not known here")

    def _brackets(self) -> str:
        parts = ["["]
        start = self._at
        if negated := self._pattern.startswith("^", self._at):
            parts.append("^")
            self._at += 1
        if self._pattern.startswith("]", self._at):
            raise NotKept(r"has brackets that begin with ]; write \]")
        may_begin_range = False
        while (match := self._next()) is not None:
            text = match[0]
            if text == "]":
                if self._pattern[start : match.start()] in _EVERYTHING:
                    return "(?s:.)"
                return self._without_nul(parts, negated=negated)
            if text == "-" and may_begin_range and self._range_goes_on():
                parts.append("-")
                match = self._next()
                may_begin_range = False
            else:
                may_begin_range = not _is_class(match)
            if match is not None:
                parts.append(self._inside(match, negated))
        raise NotKept("has a bracket without an end")

    def _without_nul(self, parts: list[str], *, negated: bool) -> str:
        """Brackets, whole, that do not match it."""
        if negated:
            return "".join([*parts, NUL, "]"])
        brackets = "".join([*parts, "]"])
        has_nul = NUL in parts or any(part.startswith(("\\p", "\\P")) for part in parts)
        return f"[{brackets}&&[^{NUL}]]" if has_nul else brackets

    def _range_goes_on(self) -> bool:
        """Whether a single character follows, and not the end or a class."""
        follows = _TOKEN.match(self._pattern, self._at)
        return follows is not None and follows[0] != "]" and not _is_class(follows)

    def _inside(self, match: re.Match[str], negated: bool) -> str:
        if match[0].startswith("\\"):
            return self._escape(match, inside=True, negated=negated)
        self._at = match.start() + 1  # (? and {2} are several characters here
        return _literal(match[0][0])

    def _escape(self, match: re.Match[str], *, inside: bool, negated: bool = False) -> str:
        if (code := _code(match)) is not None:
            if code > 0x10FFFF or 0xD800 <= code < 0xE000:
                raise NotKept("has an escape of half of a surrogate pair, or of no character")
            if code == 0 and not inside:
                raise NotKept(NO_NUL)
            return f"\\x{{{code:x}}}"
        if match["property"]:
            return f"\\{match['property']}" if inside else f"[\\{match['property']}&&[^{NUL}]]"
        char = match["escaped"]
        if char is None:
            raise NotKept("ends within an escape")
        if char in "dDwW":
            return f"\\{char}"
        if char == "s":
            space = ANY_SPACE if negated else SPACE
            return space if inside else f"[{space}]"
        if char == "S":
            return f"[^{SPACE if negated else ANY_SPACE}]"
        if char == "b" and inside:
            return r"\x{8}"
        if char.isdigit() or char == "k":
            raise NotKept("has a reference to a group, which no grammar of tokens keeps")
        if char in "bB":
            raise NotKept(rf"has the word boundary \{char}, which is not known here; write what may stand there")
        if char.isalpha() and char.isascii():
            hint = "; use ^ and $" if char in "AZz" else ""
            raise NotKept(rf"has the escape \{char}, which is not known here{hint}")
        return _literal(char)


def _is_class(match: re.Match[str]) -> bool:
    """Whether it stands for one of several characters."""
    return match["property"] is not None or (match["escaped"] or "-") in "dDwWsS"


def _code(match: re.Match[str]) -> int | None:
    """The character that an escape names by its number, or by one of the common letters."""
    if digits := match["brace"] or match["unicode"] or match["hex"]:
        return int(digits, 16)
    if match["high"]:
        return 0x10000 + ((int(match["high"], 16) & 0x3FF) << 10) + (int(match["low"], 16) & 0x3FF)
    if match["control"]:
        return ord(match["control"]) & 31
    if match["zero"]:
        return 0
    return _PLAIN_ESCAPES.get(match["escaped"] or "")


def _literal(char: str) -> str:
    """A character that stands for itself, inside of brackets and outside."""
    if char in _META:
        return "\\" + char
    return char if char.isprintable() else f"\\x{{{ord(char):x}}}"
