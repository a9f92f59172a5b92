# Internal: what Vocab and Detokenizer share. Nothing in it is for callers.
