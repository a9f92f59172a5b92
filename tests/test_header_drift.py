"""The Cython declarations against the vendored headers, member by member.

Cython takes the names it is given on trust: a field that llama.cpp inserts or an enum member that it renames would go
unnoticed until something reads the wrong bytes. These tests compare enums, structs, typedefs, functions and constants.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable

import pytest

from c_declarations import (
    LLAMA_CPP,
    ROOT,
    Declarations,
    Function,
    ParseError,
    PxdParser,
    compare,
    drift,
    load_header,
    parse_header,
    without_comments,
)

PXD_DIR = ROOT / "src" / "llama_runner" / "_c"
PXD_FILES = ("llama.pxd", "ggml.pxd")

# ----------------------------------------------------------------------------------------------------
# Our declarations


@pytest.mark.parametrize("name", PXD_FILES)
def test_declarations_match_the_headers(name: str) -> None:
    report = drift((PXD_DIR / name).read_text(encoding="utf-8"))
    assert not report, f"{name} has drifted from the vendored headers:\n" + "\n".join(report)


def test_declarations_cover_llama_h() -> None:
    """The comparison must have something to compare: the core of the API is declared, with its fields."""
    ours = PxdParser((PXD_DIR / "llama.pxd").read_text(encoding="utf-8")).parse()["llama.h"]
    assert {"llama_decode", "llama_tokenize", "llama_memory_seq_cp", "llama_state_seq_get_data"} <= set(
        ours.functions
    )
    assert all(ours.structs[name] for name in ("llama_model_params", "llama_context_params", "llama_batch"))
    assert {"llama_vocab_type", "llama_pooling_type"} <= set(ours.enums)


# ----------------------------------------------------------------------------------------------------
# The parser on the real headers


@pytest.fixture(scope="module")
def llama_h_text() -> str:
    return (LLAMA_CPP / "include" / "llama.h").read_text(encoding="utf-8")


def test_no_function_of_llama_h_is_lost(llama_h_text: str) -> None:
    """Counted in a second way: every LLAMA_API outside comments and directives is one function."""
    lines = [line for line in without_comments(llama_h_text).split("\n") if not line.lstrip().startswith("#")]
    plain = "\n".join(lines)
    functions = parse_header(llama_h_text)[0].functions
    assert len(functions) == len(re.findall(r"\bLLAMA_API\b", plain)) > 200
    deprecated = [name for name, function in functions.items() if function.deprecated]
    assert len(deprecated) == len(re.findall(r"\bDEPRECATED\(", plain)) > 10


def test_no_enum_member_of_llama_h_is_lost(llama_h_text: str) -> None:
    plain = without_comments(llama_h_text)
    listed = re.findall(r"^\s*(LLAMA_[A-Z0-9_]+)\s*(?:=[^,\n]*)?,\s*$", plain, re.MULTILINE)
    parsed = [member for members in parse_header(llama_h_text)[0].enums.values() for member in members]
    assert sorted(listed) == sorted(parsed)
    assert len(parsed) > 100


def test_known_declarations_of_llama_h() -> None:
    """Written down by hand, so that both parsers cannot err alike."""
    header = load_header("llama.h")
    assert header.structs["llama_batch"] == (
        ("n_tokens", "int32_t"),
        ("token", "llama_token*"),
        ("embd", "float*"),
        ("pos", "llama_pos*"),
        ("n_seq_id", "int32_t*"),
        ("seq_id", "llama_seq_id**"),
        ("logits", "int8_t*"),
    )
    assert ("val_str", "char[128]") in header.structs["llama_model_kv_override"]
    assert header.typedefs["llama_progress_callback"] == "bool(*)(float,void*)"
    assert header.typedefs["llama_memory_t"] == "llama_memory_i*"
    assert header.functions["llama_decode"] == Function("int32_t", ("llama_context*", "llama_batch"))
    assert header.functions["llama_backend_init"] == Function("void", ())
    assert header.functions["llama_vocab_cls"].deprecated
    assert {"LLAMA_DEFAULT_SEED", "GGML_MAX_DIMS"} <= header.constants
    assert header.structs["llama_vocab"] == ()


# ----------------------------------------------------------------------------------------------------
# The comparison on doctored headers


def declare(kind: str, name: str) -> str:
    """A canonical type and a name as a Cython declaration."""
    if "(*)" in kind:
        return kind.replace("(*)", f"(*{name})", 1)
    base, bracket, extent = kind.partition("[")
    return f"{base} {name}{bracket}{extent}"


def render_pxd(header: Declarations) -> str:
    """A pxd that declares all of a header, to compare with changed copies of it."""
    lines = ['cdef extern from "llama.h" nogil:']
    for name, members in header.enums.items():
        lines += [f"    enum {name}:", *(f"        {member}" for member in members)]
    for name, fields in header.structs.items():
        body = [f"        {declare(kind, field_name)}" for field_name, kind in fields]
        lines += [f"    ctypedef struct {name}:", *(body or ["        pass"])]
    for name, kind in header.typedefs.items():
        lines.append(f"    ctypedef {declare(kind, name)}")
    for name, function in header.functions.items():
        if not function.deprecated:
            lines.append(f"    {function.returns} {name}({', '.join(function.params)}) except +")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def full_pxd(llama_h_text: str) -> str:
    return render_pxd(parse_header(llama_h_text)[0])


def doctored(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"llama.h no longer has exactly one {old!r}: choose another"
    return text.replace(old, new)


def reversed_pair(first: str, second: str) -> Callable[[str], str]:
    def swap(text: str) -> str:
        return doctored(doctored(doctored(text, first, "\0"), second, first), "\0", second)

    return swap


def replacing(old: str, new: str) -> Callable[[str], str]:
    return lambda text: doctored(text, old, new)


def test_the_whole_header_agrees_with_itself(full_pxd: str, llama_h_text: str) -> None:
    assert drift(full_pxd) == []
    assert full_pxd.count("\n") > 500


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(
            replacing("LLAMA_SPLIT_MODE_ROW    = 2", "LLAMA_SPLIT_MODE_ROWS   = 2"),
            [
                "enum llama_split_mode: LLAMA_SPLIT_MODE_ROWS of the header is missing",
                "enum llama_split_mode: LLAMA_SPLIT_MODE_ROW is not in the header",
            ],
            id="renamed member",
        ),
        pytest.param(
            replacing("LLAMA_SPLIT_MODE_TENSOR = 3,", "LLAMA_SPLIT_MODE_TENSOR = 3, LLAMA_SPLIT_MODE_NEW,"),
            ["enum llama_split_mode: LLAMA_SPLIT_MODE_NEW of the header is missing"],
            id="one more member",
        ),
        pytest.param(
            reversed_pair("LLAMA_PROCESS_TYPE_ENCODE,", "LLAMA_PROCESS_TYPE_DECODE,"),
            [
                "enum llama_process_type: LLAMA_PROCESS_TYPE_ENCODE stands where the header has "
                "LLAMA_PROCESS_TYPE_DECODE"
            ],
            id="swapped members",
        ),
        pytest.param(
            reversed_pair("float    yarn_beta_fast;", "float    yarn_beta_slow;"),
            ["struct llama_context_params: yarn_beta_fast stands where the header has yarn_beta_slow"],
            id="swapped fields",
        ),
        pytest.param(
            replacing("bool swa_full;", "bool swa_full; bool swa_new;"),
            ["struct llama_context_params: swa_new of the header is missing"],
            id="one more field",
        ),
        pytest.param(
            replacing("int32_t  n_threads; ", "uint32_t n_threads; "),
            ["struct llama_context_params: n_threads is int32_t, in the header uint32_t"],
            id="retyped field",
        ),
        pytest.param(
            replacing("char    val_str[128];", "char    val_str[256];"),
            ["struct llama_model_kv_override: val_str is char[128], in the header char[256]"],
            id="longer array in a union",
        ),
        pytest.param(
            replacing("llama_state_get_size(struct llama_context * ctx)", "llama_state_get_size(void)"),
            ["function llama_state_get_size: takes (llama_context*), in the header ()"],
            id="lost parameter",
        ),
        pytest.param(
            replacing("LLAMA_API int64_t llama_time_us(void)", "LLAMA_API uint64_t llama_time_us(void)"),
            ["function llama_time_us: returns int64_t, in the header uint64_t"],
            id="retyped result",
        ),
        pytest.param(
            replacing(
                "LLAMA_API int64_t llama_time_us(void);",
                'DEPRECATED(LLAMA_API int64_t llama_time_us(void), "");',
            ),
            ["function llama_time_us: deprecated in the header"],
            id="deprecated",
        ),
        pytest.param(
            replacing("LLAMA_API int64_t llama_time_us(void);", ""),
            ["function llama_time_us: not in the header"],
            id="removed function",
        ),
        pytest.param(
            replacing("typedef int32_t llama_pos;", "typedef int64_t llama_pos;"),
            ["typedef llama_pos: int32_t, in the header int64_t"],
            id="retyped typedef",
        ),
        pytest.param(
            replacing(
                "(*llama_progress_callback)(float progress,", "(*llama_progress_callback)(double progress,"
            ),
            ["typedef llama_progress_callback: bool(*)(float,void*), in the header bool(*)(double,void*)"],
            id="retyped callback",
        ),
    ],
)
def test_one_change_is_one_report(
    full_pxd: str, llama_h_text: str, change: Callable[[str], str], expected: list[str]
) -> None:
    assert drift(full_pxd, {"llama.h": change(llama_h_text)}) == expected


# ----------------------------------------------------------------------------------------------------
# The parsers on small texts


def test_cython_spellings_are_the_same_types() -> None:
    text = """
from libcpp cimport bool as cpp_bool

cdef extern from "x.h" nogil:
    cdef enum color_e "enum color": RED, GREEN
    enum:
        LIMIT
    const int SEED
    cdef struct point "struct point_s":
        cpp_bool on  # a comment
        unsigned count, *counts
        int (*call)(void *, color_e) noexcept nogil
    ctypedef point *point_t
    color_e get_color "color"(
        const point *p,
        bint flag) except + nogil
"""
    found = PxdParser(text).parse()["x.h"]
    assert found.enums == {"color": ("RED", "GREEN")}
    assert found.constants == {"LIMIT", "SEED"}
    assert found.structs == {
        "point_s": (
            ("on", "bool"),
            ("count", "unsigned int"),
            ("counts", "unsigned int*"),
            ("call", "int(*)(void*,color)"),
        )
    }
    assert found.typedefs == {"point_t": "point_s*"}
    assert found.functions == {"color": Function("color", ("point_s*", "bool"), renamed=True)}


def test_an_enum_may_come_back_as_int_only_under_another_name() -> None:
    header = Declarations(enums={"e": ("A",)}, functions={"e": Function("e", ()), "f": Function("e", ())})
    assert compare(Declarations(functions={"e": Function("int", (), renamed=True)}), header) == []
    assert compare(Declarations(functions={"f": Function("int", ())}), header) == [
        "function f: returns int, in the header e"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "struct a { int x : 3; };",
        "struct a { struct b { int x; } y; };",
        "enum a { A + 1, };",
        "int f(int) { return 1; }",
        "int f(int;",
        "int @;",
        "int f(int a) weird;",
        "int f(void); int f(int);",
        "#if SOMETHING\nint f(void);\n#endif",
        "#ifdef __cplusplus",
        "#strange",
    ],
)
def test_a_header_that_is_not_understood_raises(text: str) -> None:
    with pytest.raises((ParseError, ValueError)):
        parse_header(text)


@pytest.mark.parametrize(
    "text",
    [
        "cdef class A:\n    pass",
        'cdef extern from "x.h":\n    """int x;"""',
        'cdef extern from "x.h":\n    int f(int a',
        'cdef extern from "x.h":\n    int f(int a) sometimes',
        'cdef extern from "x.h":\n    enum a: A, B\n        C',
        'cdef extern from "x.h":\n    struct a:',
        'cdef extern from "x.h":\n    int f() except +\n    int f() except +',
    ],
)
def test_a_pxd_that_is_not_understood_raises(text: str) -> None:
    with pytest.raises(ParseError):
        PxdParser(text).parse()


def test_a_header_outside_the_vendored_tree_is_reported() -> None:
    assert drift('cdef extern from "nowhere.h":\n    int f()\n') == [
        "extern from nowhere.h: not a header of the vendored tree"
    ]


# ----------------------------------------------------------------------------------------------------
# Wrapped, or on the page that says why not


def source_of(*patterns: str) -> str:
    folder = ROOT / "src" / "llama_runner"
    return "\n".join(
        path.read_text(encoding="utf-8") for pattern in patterns for path in sorted(folder.glob(pattern))
    )


def not_wrapped_patterns() -> list[str]:
    page = (ROOT / "docs" / "not-wrapped.md").read_text(encoding="utf-8")
    cells = [
        line.split("|")[1]
        for line in page.split("\n")
        if line.startswith("| ") and not line.startswith("| ---")
    ]
    return [pattern for cell in cells for pattern in re.findall(r"`([a-zA-Z_0-9*]+)`", cell)]


def called(name: str, source: str) -> bool:
    """Whether the code calls a function, or hands it to something that does."""
    return re.search(rf"\b{name}\s*\(|[(,] ?{name}\)", source) is not None


def accounted_for(header: Declarations, patterns: list[str]) -> tuple[list[str], list[str]]:
    """(names that are neither wrapped nor on the page, functions that are both)."""
    python, native = source_of("core/*.pyx"), source_of("native/*.cpp")
    functions = [name for name, function in header.functions.items() if not function.deprecated]
    wrapped = {name for name in functions if called(name, python) or called(name, native)}
    # a struct or an enum is wrapped where it, or one of its fields or members, is named
    parts = {name: {name, *members} for name, members in header.enums.items()}
    parts |= {name: {name, *(f for f, _ in fields)} for name, fields in header.structs.items() if fields}
    words = set(re.findall(r"\w+", python + native))
    wrapped |= {name for name, part in parts.items() if part & words}
    listed = {name for name in [*functions, *parts] if any(fnmatch.fnmatchcase(name, p) for p in patterns)}
    lost = [name for name in [*functions, *parts] if name not in wrapped | listed]
    return lost, [name for name in functions if name in listed and called(name, python)]


def test_everything_of_llama_h_is_wrapped_or_on_the_page(llama_h_text: str) -> None:
    header = parse_header(llama_h_text)[0]
    lost, both = accounted_for(header, not_wrapped_patterns())
    assert not lost, "wrap these, or say in docs/not-wrapped.md why not: " + ", ".join(lost)
    assert not both, "these are wrapped by now: take them off docs/not-wrapped.md: " + ", ".join(both)


def test_the_page_names_nothing_that_is_gone(llama_h_text: str) -> None:
    header = parse_header(llama_h_text)[0]
    names = [*header.functions, *header.enums, *header.structs]
    gone = [p for p in not_wrapped_patterns() if p.startswith("llama_") and not fnmatch.filter(names, p)]
    assert not gone, f"not in llama.h: {gone}"


def test_a_function_that_nobody_wraps_is_noticed(llama_h_text: str) -> None:
    header = parse_header(llama_h_text + "\nLLAMA_API void llama_brand_new(void);\n")[0]
    assert "llama_brand_new" in accounted_for(header, not_wrapped_patterns())[0]
