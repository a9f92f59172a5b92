from typing_extensions import disjoint_base

# compiled; how arrays that a caller gives are read

@disjoint_base
class Column: ...
