// A grammar of llguidance's over one vocabulary, for the files of the shim; the C surface is in llama_runner.h.
#pragma once

#include "llama_runner.h"

#include <cstddef>
#include <cstdint>

// The constraint of a link that lr_constraint_link made; NULL for any other link.
lr_constraint * lr_constraint_of(const llama_sampler * link);

// The bits of the tokens that are allowed now, n_vocab of them. Throws what llguidance says went wrong.
const uint32_t * lr_constraint_allowed(lr_constraint & constraint);

// `row` with -INFINITY in the place of whatever is not allowed.
void lr_constraint_mask_row(lr_constraint & constraint, const float * row, int n_vocab, float * out);
