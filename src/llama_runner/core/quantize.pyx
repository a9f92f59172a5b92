"""``quantize``: another copy of a model with smaller tensors."""

import errno
import os
import re
import secrets
import threading
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free

from llama_runner._c.ggml cimport GGML_TYPE_COUNT, ggml_type
from llama_runner._c.llama cimport (
    llama_ftype,
    llama_model_imatrix_data,
    llama_model_kv_override,
    llama_model_quantize_default_params,
    llama_model_quantize_params,
    llama_model_tensor_override,
)
from llama_runner._c.native cimport lr_quantize, lr_regex_search
from llama_runner.core._native cimport drain_log, ensure_runtime, take_string
from llama_runner.core.model_params cimport check_pattern, new_overrides

from llama_runner import errors
from llama_runner._check import check_bool, check_int, check_name, check_path
from llama_runner.core.splits import split_path
from llama_runner.gguf import check_overrides, read_model_file, tables
from llama_runner.measures import QuantizeResult
from llama_runner.system import usable_physical_cores

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1

# what ggml_quantize_chunk writes; for another type a worker thread asserts, and that ends the process
cdef tuple TENSOR_TYPES = (
    "F32", "F16", "BF16", "Q1_0", "Q2_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "NVFP4", "Q2_K", "Q3_K",
    "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S",
    "IQ4_NL", "IQ4_XS",
)
# of file types, all but the one that llama.cpp has no rule for
cdef dict TYPES = {name: number for number, name in tables.FILE_TYPES.items() if name != "NVFP4"}
TYPES.update(Q3_K=TYPES["Q3_K_M"], Q4_K=TYPES["Q4_K_M"], Q5_K=TYPES["Q5_K_M"])
cdef dict TYPE_IDS = {name: number for number, (name, _, _) in tables.GGML_TYPES.items()}
cdef dict TYPE_NAMES = {name.lower(): name for name in TYPE_IDS}
cdef dict BLOCKS = {name: block for name, block, _ in tables.GGML_TYPES.values()}
# which cannot be made without an importance matrix; of the first two tensors of a model llama.cpp overlooks it
cdef frozenset NEEDS_IMATRIX = frozenset({"IQ2_XXS", "IQ2_XS", "IQ1_S"})
cdef frozenset UNCHECKED = frozenset({"token_embd.weight", "per_layer_token_embd.weight", "output.weight"})
# whose search for the nearest grid point ends the process when it meets an overflow
cdef frozenset GRIDS = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"})
BLOCK = re.compile(r"blk\.(\d{1,6})\.")
cdef double MAX_WEIGHT = 1e5  # squares of 256 cubes stay finite; F16 has none beyond it
cdef int64_t MAX_BUFFER = 8 << 30  # elements of a buffer are counted in 32 bits beyond it
cdef int MAX_THREADS = 512


cdef class _Job:
    """The struct, the arrays that it points into, and the progress callback with what it raised."""
    cdef llama_model_quantize_params c
    cdef llama_model_imatrix_data *imatrix
    cdef llama_model_kv_override *overrides
    cdef llama_model_tensor_override *types
    cdef int32_t *pruned
    cdef list kept
    cdef object callback, error
    cdef int n_tensors

    def __cinit__(self):
        self.c = llama_model_quantize_default_params()
        self.kept = []

    def __dealloc__(self):
        free(self.imatrix)
        free(self.overrides)
        free(self.types)
        free(self.pruned)

    cdef int set_overrides(self, dict values) except -1:
        self.overrides = new_overrides(values)
        self.c.kv_overrides = self.overrides
        return 0

    cdef int set_types(self, list patterns) except -1:
        cdef size_t i = 0
        if not patterns:
            return 0
        self.types = <llama_model_tensor_override *> calloc(len(patterns) + 1, sizeof(llama_model_tensor_override))
        if self.types == NULL:
            raise MemoryError()
        for pattern, name in patterns:
            self.kept.append(pattern)
            self.types[i].pattern = <bytes> pattern
            self.types[i].type = <ggml_type> <int> TYPE_IDS[name]
            i += 1
        self.types[i].type = GGML_TYPE_COUNT
        self.c.tt_overrides = self.types
        return 0

    cdef int set_imatrix(self, dict arrays) except -1:
        cdef size_t i = 0
        cdef const float[::1] values
        if not arrays:
            return 0
        self.imatrix = <llama_model_imatrix_data *> calloc(len(arrays) + 1, sizeof(llama_model_imatrix_data))
        if self.imatrix == NULL:
            raise MemoryError()
        for name, array in arrays.items():
            encoded = name.encode()
            self.kept.append((encoded, array))
            values = array
            self.imatrix[i].name = <bytes> encoded
            self.imatrix[i].data = &values[0]
            self.imatrix[i].size = len(array)
            i += 1
        self.c.imatrix = self.imatrix
        return 0

    cdef int set_pruned(self, list layers) except -1:
        cdef size_t i = 0
        if not layers:
            return 0
        self.pruned = <int32_t *> calloc(len(layers) + 1, sizeof(int32_t))
        if self.pruned == NULL:
            raise MemoryError()
        for layer in layers:
            self.pruned[i] = layer
            i += 1
        self.pruned[i] = -1
        self.c.prune_layers = self.pruned
        return 0


cdef int on_tensor(int done, void *user_data) noexcept with gil:
    cdef _Job job = <_Job> user_data
    try:
        PyErr_CheckSignals()  # Ctrl-C, felt between two tensors
        return job.callback is not None and job.callback(done, job.n_tensors) is False
    except BaseException as error:  # nothing may unwind through llama.cpp; raised again by quantize()
        job.error = error
        return 1


def quantize(
    input,
    output,
    type="Q4_K_M",
    *,
    n_threads=None,
    output_tensor_type=None,
    token_embedding_type=None,
    tensor_types=None,
    imatrix=None,
    kv_overrides=None,
    prune_layers=None,
    allow_requantize=False,
    quantize_output_tensor=True,
    only_copy=False,
    pure=False,
    keep_split=False,
    dry_run=False,
    max_buf_size=None,
    overwrite=False,
    progress=None,
):
    """Write the model at ``input`` to ``output`` with tensors of another type. Wraps ``llama_model_quantize``.

    Parameters
    ----------
    input : a GGUF file; of a split model the first part, whose name must say so. Best F32, F16 or BF16.
    output : the file to write; with ``keep_split`` what precedes the numbers in the names of the parts.
    type : the file type, such as ``"Q8_0"``, ``"Q4_K_M"``, ``"IQ4_XS"``, ``"F16"``; upper or lower case.
    n_threads : 1 to 512; None for the physical cores this process may use.
    output_tensor_type, token_embedding_type : tensor types, such as ``"Q6_K"``, for these two.
    tensor_types : a mapping from regular expressions to tensor types; the first that is found in a tensor's name
        counts, where ``type`` is a quantized one.
    imatrix : the importance of each input of a tensor: a mapping from tensor name to a float32 array of one value a
        column, times the experts. The IQ1, IQ2 and IQ3_XXS types, and Q2_K_S, cannot do without.
    kv_overrides : metadata to write in place of the file's, as for ``Model``.
    prune_layers : indices of layers to leave out.
    allow_requantize : take quantized tensors as a source; to the IQ1, IQ2 and IQ3 types with one thread.
    quantize_output_tensor : False keeps ``output.weight`` as it is.
    only_copy : keep all as they are; joins a split model. keep_split : write as many parts as there were.
    pure : ``type`` for all tensors, without the mixture that is known to be better.
    dry_run : write nothing, and return what would have been. max_buf_size : most bytes of rows in memory, up to 8 GiB.
    overwrite : replace a file at ``output``.
    progress : called with (tensors done, tensors in all), before each tensor and at the end; returning False cancels
        before the next tensor, which is as soon as llama.cpp can stop; its errors are raised.

    Returns a QuantizeResult. Files are written under another name beside ``output`` and renamed when all is done, so
    that after an error, or a cancel (LlamaRuntimeError), nothing has changed.

    Raises ModelNotFoundError, ModelFormatError, UnsupportedModelError, ModelCapabilityError (what the model or the type
    cannot do), StorageError (``output`` exists or cannot be written), InvalidArgumentError, ArgumentTypeError.
    Any thread; the GIL is released.
    """
    cdef _Job job = _Job()
    source = read_model_file((check_path(input),))
    for name, value in (
        ("allow_requantize", allow_requantize), ("quantize_output_tensor", quantize_output_tensor),
        ("only_copy", only_copy), ("pure", pure), ("keep_split", keep_split), ("dry_run", dry_run),
        ("overwrite", overwrite),
    ):
        check_bool(name, value)
    if progress is not None and not callable(progress):
        raise errors.ArgumentTypeError(f"progress={progress!r}: it is a callable that takes two integers, or None")
    type_name = check_type("type", type, TYPES)
    job.c.ftype = <llama_ftype> <int> TYPES[type_name]
    job.c.nthread = usable_physical_cores() if n_threads is None else check_int("n_threads", n_threads, 1, MAX_THREADS)
    job.c.allow_requantize = allow_requantize
    job.c.quantize_output_tensor = quantize_output_tensor
    job.c.only_copy = only_copy
    job.c.pure = pure
    job.c.keep_split = keep_split
    job.c.dry_run = dry_run
    if max_buf_size is not None:
        job.c.max_buf_size = check_int("max_buf_size", max_buf_size, 1, MAX_BUFFER)
    overrides = {} if kv_overrides is None else check_overrides(source.header, kv_overrides)
    # llama.cpp pads to 32 whatever the file says, and copies what the file says
    job.set_overrides({**overrides, "general.alignment": 32} if source.header.alignment != 32 else overrides)
    pruned = check_layers(source, prune_layers)
    job.set_pruned(pruned)
    tensors = kept_tensors(source, pruned, keep_split)
    patterns = check_patterns(tensor_types)
    job.set_types(patterns)
    named = {}
    if output_tensor_type is not None:
        named["output.weight"] = check_type("output_tensor_type", output_tensor_type, TENSOR_TYPES)
        job.c.output_tensor_type = <ggml_type> <int> TYPE_IDS[named["output.weight"]]
    if token_embedding_type is not None:
        named["token_embd.weight"] = check_type("token_embedding_type", token_embedding_type, TENSOR_TYPES)
        named["per_layer_token_embd.weight"] = named["token_embd.weight"]
        job.c.token_embedding_type = <ggml_type> <int> TYPE_IDS[named["token_embd.weight"]]
    arrays = check_imatrix(tensors, imatrix)
    job.set_imatrix(arrays)
    if not only_copy:
        check_targets(tensors, type_name, named, patterns, pure, arrays)
        if GRIDS.intersection(named.values()) or type_name.startswith(("IQ1", "IQ2", "IQ3")) or any(
            name in GRIDS for _, name in patterns
        ):
            check_magnitudes(source)
            if any(tensor.type not in ("F32", "F16", "BF16") for tensor in tensors):
                job.c.nthread = 1  # scales of a hostile file have no bound: on this thread an assertion can be caught
    job.callback = progress
    job.n_tensors = len(tensors)
    targets = check_output(source, check_path(output), keep_split, overwrite or dry_run)
    ensure_runtime()
    if dry_run:
        report = run(job, source, targets[0])
        paths = ()
    else:
        report, paths = write(job, source, targets, overwrite)
    if progress is not None:
        progress(len(tensors), len(tensors))
    return result({renumbered(tensor.name, pruned): tensor for tensor in tensors}, report, paths)


cdef str run(_Job job, source, str target):
    """Call llama.cpp; the report of ``lr_quantize``, or the typed error."""
    cdef bytes c_input = os.fsencode(source.paths[0]), c_output = os.fsencode(target)
    cdef const char *p_input = c_input
    cdef const char *p_output = c_output
    cdef char *report = NULL
    cdef void *data = <void *> job
    cdef int code
    drain_log()
    with nogil:
        code = lr_quantize(p_input, p_output, &job.c, on_tensor, data, &report)
    text = take_string(report)
    lines = drain_log()
    if job.error is not None:
        raise job.error
    if code < 0:
        raise errors.LlamaRuntimeError(f"quantizing {source.paths[0]} was cancelled by its progress callback")
    if code != 0:
        raise failure(source, lines)
    return text


cdef tuple write(_Job job, source, list targets, bint overwrite):
    """Run into files of other names, then rename; the report and the final paths."""
    folder, name = os.path.split(targets[0])
    # two calls in one process may have the same target
    stem = os.path.join(folder, f".{name[:40]}.{os.getpid()}.{threading.get_ident()}.{secrets.token_hex(4)}")
    count = len(targets)
    temporary = [f"{stem}-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)] if job.c.keep_split else [stem]
    try:
        report = run(job, source, stem)
        if not overwrite:  # it may have come into being meanwhile
            refuse_existing(targets)
        for made, target in zip(temporary, targets):
            os.replace(made, target)
    except OSError as error:
        if isinstance(error, errors.LlamaRunnerError):
            raise
        raise storage_error(f"cannot write {targets[0]!r}", error) from error
    finally:
        for made in temporary:
            if os.path.exists(made):
                os.unlink(made)
    return report, tuple(targets)


cdef object failure(source, list lines):
    """The typed error for a failed call, told from llama.cpp's own last lines."""
    text = "\n".join(lines)
    path = source.paths[0]
    if "requantizing from type" in text:
        return errors.ModelCapabilityError(
            f"{path} is quantized already, and quality would suffer twice: start from the F16 or F32 model, or pass "
            "allow_requantize=True"
        ).with_log(lines)
    if "imatrix" in text or "importance matrix" in text:
        return errors.InvalidArgumentError("this type needs an imatrix with each tensor in it").with_log(lines)
    if "unknown model architecture" in text:
        return errors.UnsupportedModelError(
            f"{path} is of an architecture that this build of llama.cpp does not know"
        ).with_log(lines)
    if "invalid data" in text:
        return errors.ModelFormatError(f"{path} has weights that are no numbers").with_log(lines)
    if "data validation failed" in text:
        return errors.ModelFormatError(f"{path} has weights that are too large for that type").with_log(lines)
    if "no tensor type fallback" in text or "cannot dequantize" in text or "unsupported for integer" in text:
        return errors.ModelCapabilityError(f"{path} cannot be quantized to that type").with_log(lines)
    if "iostream" in text or "basic_ios" in text or "failbit" in text:
        return errors.StorageError("the output cannot be written: no permission, or a full disk").with_log(lines)
    return errors.ModelFormatError(f"llama.cpp cannot quantize {path}").with_log(lines)


cdef object storage_error(str message, error):
    made = errors.StorageError(f"{message}: {error.strerror or error}")
    made.errno = error.errno
    return made


cdef object result(dict tensors, str report, tuple paths):
    """What was done, from what llama.cpp said of each tensor and the shapes in the file."""
    types = {name: tensor.type for name, tensor in tensors.items()}
    for line in report.split("\n"):
        name, _, type_name = line.partition("\t")
        if name in types and type_name.lower() in TYPE_NAMES:
            types[name] = TYPE_NAMES[type_name.lower()]
    return QuantizeResult(
        paths=paths,
        types=MappingProxyType(types),
        bytes_before=sum(tensor.n_bytes for tensor in tensors.values()),
        bytes_after=sum(tables.tensor_bytes(tensors[name].shape, TYPE_IDS[types[name]]) for name in types),
    )


# --- checks


cdef str check_type(str name, value, choices):
    """The upper-case name of a type."""
    if not isinstance(value, str) or value.upper() not in choices:
        raise errors.InvalidArgumentError(f"{name}={value!r}: it is one of {', '.join(choices)}")
    return value.upper()


cdef list check_layers(source, layers):
    """The layers to leave out, ascending as llama.cpp needs them."""
    if layers is None:
        return []
    if isinstance(layers, (str, bytes, Mapping)) or not hasattr(layers, "__iter__"):
        raise errors.ArgumentTypeError(f"prune_layers={layers!r}: it is a list of integers")
    header = source.header
    count = header.kv.get(f"{header.architecture}.block_count", 0)
    found = sorted({check_int("a number in prune_layers", layer, 0, max(0, count - 1)) for layer in layers})
    if found and len(found) >= count:
        raise errors.InvalidArgumentError(f"prune_layers has all {count} layers: leave at least one")
    for key, value in header.kv.items():
        # one value a layer: the loader compares its length with the number of layers that are left
        if found and key.startswith(f"{header.architecture}.") and getattr(value, "length", None) == count:
            raise errors.ModelCapabilityError(
                f"prune_layers: {key!r} has a value for each of the {count} layers, which llama.cpp does not prune"
            )
    return found


cdef list kept_tensors(source, list pruned, bint keep_split):
    """The tensors that will be written."""
    if keep_split and len(source.paths) == 1:
        raise errors.InvalidArgumentError(f"keep_split=True: {source.paths[0]!r} is not split")
    tensors = []
    for path, header in zip(source.paths, source.headers):
        kept = [tensor for tensor in header.tensors if layer_of(tensor.name) not in pruned]
        if keep_split and not kept:
            raise errors.InvalidArgumentError(f"keep_split=True: nothing of {path!r} would be left")
        tensors += kept
    if not tensors:
        raise errors.ModelCapabilityError(f"{source.paths[0]} holds a vocabulary and no weights: nothing to quantize")
    return tensors


cdef object layer_of(str name):
    """The number of the layer that a tensor belongs to, as llama.cpp reads it from its name; None for none."""
    match = BLOCK.search(name)
    return int(match[1]) if match else None


cdef str renumbered(str name, list pruned):
    """The name that a tensor has once the layers before it are gone."""
    match = BLOCK.search(name)
    if not match or not pruned:
        return name
    layer = int(match[1])
    return f"{name[:match.start(1)]}{layer - sum(gone < layer for gone in pruned)}{name[match.end(1):]}"


cdef list check_patterns(tensor_types):
    if tensor_types is None:
        return []
    if not isinstance(tensor_types, Mapping):
        raise errors.ArgumentTypeError(f"tensor_types={tensor_types!r}: it is a mapping from pattern to tensor type")
    if len(tensor_types) > 65536:
        raise errors.InvalidArgumentError(f"tensor_types has {len(tensor_types)} patterns: that is too many")
    return [
        (check_pattern("tensor_types", pattern), check_type(f"tensor_types[{pattern!r}]", name, TENSOR_TYPES))
        for pattern, name in tensor_types.items()
    ]


cdef dict check_imatrix(list tensors, imatrix):
    if imatrix is None:
        return {}
    if not isinstance(imatrix, Mapping):
        raise errors.ArgumentTypeError(f"imatrix={imatrix!r}: it is a mapping from tensor name to array")
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    arrays = {}
    for name, values in imatrix.items():
        check_name("a name in imatrix", name)
        try:
            array = np.array(values, dtype=np.float32, order="C").reshape(-1)  # a copy: another thread may write
        except (TypeError, ValueError, OverflowError):
            raise errors.ArgumentTypeError(f"imatrix[{name!r}]: it is an array of numbers") from None
        shape = shapes.get(name)
        if array.size == 0 or (shape is not None and array.size != shape[0] * (shape[2] if len(shape) > 2 else 1)):
            raise errors.InvalidArgumentError(
                f"imatrix[{name!r}] has {array.size} values: it has one for each column of the tensor, times the "
                "experts" + (f", here {shape[0] * (shape[2] if len(shape) > 2 else 1)}" if shape else "")
            )
        if not (np.isfinite(array).all() and array.min() >= 0):
            raise errors.InvalidArgumentError(f"imatrix[{name!r}]: all values must be finite and at least 0")
        # only their ratios count; by a power of two nothing is rounded, and squares of sums stay finite
        arrays[name] = np.ldexp(array, -np.frexp(array.max())[1])
    return arrays


cdef int check_targets(list tensors, str type_name, dict named, list patterns, bint pure, dict arrays) except -1:
    """What llama.cpp asserts in a worker thread, where nothing can catch it, or after hours of work."""
    for tensor in tensors:
        target = named.get(tensor.name)
        if target is not None and tensor.shape[0] % BLOCKS[target]:
            raise errors.ModelCapabilityError(
                f"{tensor.name} has rows of {tensor.shape[0]}, and {target} needs a multiple of {BLOCKS[target]}"
            )
        if tensor.name in UNCHECKED:
            reached = [target] if target else [name for pattern, name in patterns if found(pattern, tensor.name)][:1]
            # with a tied embedding it takes the type of the output tensor
            reached += [named[name] for name in ("output.weight",) if name in named]
            reached += [type_name] if pure else []
            # IQ2_S as a file type is made of IQ2_XS
            reached = ["IQ2_XS" if name == "IQ2_S" and pure else name for name in reached]
            missing = NEEDS_IMATRIX.intersection(reached)
            if missing and tensor.name not in arrays:
                raise errors.InvalidArgumentError(
                    f"{tensor.name} cannot be of type {', '.join(sorted(missing))} without its values in imatrix; "
                    "choose another type for it, by token_embedding_type or output_tensor_type"
                )
    return 0


cdef int check_magnitudes(source) except -1:
    """That no weight is so large that a grid search overflows: it would assert, and in a thread of its own."""
    for path, header in zip(source.paths, source.headers):
        with open(path, "rb") as file:
            for tensor in header.tensors:
                if len(tensor.shape) > 1:
                    check_magnitude(file, path, header.data_offset + tensor.offset, tensor)
    return 0


cdef int check_magnitude(file, str path, offset, tensor) except -1:
    width = {"F32": 4, "BF16": 2}.get(tensor.type)
    if width is None:
        return 0
    file.seek(offset)
    left = tensor.n_bytes
    while left:
        data = file.read(min(left, 1 << 24))
        if not data:
            raise errors.ModelFormatError(f"{path} became shorter while it was read")
        left -= len(data)
        # the bits of a float without its sign are in the order of its magnitude
        bits = np.frombuffer(data, np.uint32 if width == 4 else np.uint16) & (0x7FFFFFFF if width == 4 else 0x7FFF)
        top = np.array([bits.max()], np.uint32) << (0 if width == 4 else 16)
        largest = float(top.view(np.float32)[0])
        if not largest <= MAX_WEIGHT:
            raise errors.ModelFormatError(
                f"{path}: {tensor.name} has a weight of {largest:g}; the IQ1, IQ2 and IQ3 types take up to "
                f"{MAX_WEIGHT:g}"
            )
    return 0


cdef bint found(bytes pattern, str name) except -1:
    cdef char *error = NULL
    cdef bytes text = name.encode()
    return lr_regex_search(pattern, text, &error) > 0


cdef list check_output(source, str output, bint keep_split, bint may_exist):
    """The files to write: none of them is a part of the source, or is there already unless it may be."""
    targets = [output]
    if keep_split:
        count = len(source.paths)
        targets = [split_path(output.removesuffix(".gguf"), i, count) for i in range(count)]
    for target in targets:
        if os.path.isdir(target):
            raise existing(f"{target!r} is a directory; output is the file to write")
        if os.path.exists(target) and any(os.path.samefile(target, path) for path in source.paths):
            raise errors.InvalidArgumentError(f"{target!r} is the input as well: choose another output")
    if not may_exist:
        refuse_existing(targets)
    if not os.path.isdir(os.path.dirname(output)):
        raise errors.StorageError(f"cannot write {output!r}: there is no such folder")
    return targets


cdef int refuse_existing(list targets) except -1:
    for target in targets:
        if os.path.lexists(target):
            raise existing(f"{target!r} exists: choose another output, or pass overwrite=True")
    return 0


cdef object existing(str message):
    made = errors.StorageError(message)
    made.errno = errno.EEXIST
    return made
