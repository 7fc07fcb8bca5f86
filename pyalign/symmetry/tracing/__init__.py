"""How a symmetry is derived: labels flow through one forward pass, ties are collected and solved, a spec is written.

`labels` say which unit each element of a tensor belongs to; `tracer` carries them through the operators by the `rules`
of each family; `ties` collects what must move together; `solve` finds units and groups, `scales` their classes;
`build` writes the spec.
"""
