"""Find every site of a model, in every scope, and the units that a plan decides."""

from __future__ import annotations

from collections import Counter, defaultdict
from fnmatch import fnmatchcase

from onnxrank.graph import operators
from onnxrank.graph.constants import is_move
from onnxrank.graph.model import Model
from onnxrank.graph.operators import other
from onnxrank.graph.operators.base import Context
from onnxrank.graph.operators.recurrent import RECURRENT
from onnxrank.graph.probe import OLDEST, reducible
from onnxrank.graph.scopes import Scope, node_key
from onnxrank.graph.sites import Selection, Site, Skip, Unit

ALL = Selection()


def find_sites(model: Model, selection: Selection = ALL) -> tuple[list[Site], list[Skip]]:
    """Every constant-weight linear map, and every other weight-bearing node with its reason.

    A node that holds an error of its own is skipped with the code ``damaged``: one odd node must
    not keep the others from being seen.
    """
    names = _node_names(model)
    sites: list[Site] = []
    skips: list[Skip] = []
    for scope, node in model.index.nodes():
        key = node_key(node)
        if not key or any(not holder for holder, _ in scope.path):
            continue  # nothing can be read from it
        context = Context(model, scope, node, names[scope, key], selection)
        for found in _recognise(context):
            if isinstance(found, Site) and not _selected(found.name, selection):
                found = _skip(found, "excluded", "left out by --include or --exclude")
            if isinstance(found, Site):
                found = _check_body(model, found)
            (sites if isinstance(found, Site) else skips).append(found)  # type: ignore[arg-type]
    return sites, skips


def _recognise(context: Context) -> list[Site | Skip]:
    known = operators.operator(context.node)
    try:
        found = known.recognise(context) if known else None
        if found is None:
            found = other.reason(context)
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        found = context.skip(
            "damaged", f"it cannot be understood ({type(error).__name__}: {error})"
        )
    if found is None:
        return []
    return found if isinstance(found, list) else [found]


def _skip(site: Site, code: str, reason: str) -> Skip:
    return Skip(site.name, site.op, site.scope, site.parameters, code, reason)


def _selected(name: str, selection: Selection) -> bool:
    wanted = not selection.include or any(fnmatchcase(name, p) for p in selection.include)
    return wanted and not any(fnmatchcase(name, p) for p in selection.exclude)


def _check_body(model: Model, site: Site) -> Site | Skip:
    """Only the bodies of If, Loop and Scan can report what happens inside them."""
    for depth in range(len(site.scope.path)):
        outer, (key, _) = Scope(site.scope.path[:depth]), site.scope.path[depth]
        holder = model.index.producers[outer][key]
        if holder.op_type not in ("If", "Loop", "Scan") or holder.domain not in ("", "ai.onnx"):
            what = f"the body of {holder.op_type}"
        elif model.opsets.get("", 0) < OLDEST:
            what = f"a body in operator set {model.opsets.get('', 0)}"
        else:
            continue
        return _skip(site, "body", f"it lies in {what}, which cannot be measured")
    if site.scope.path and not reducible(model, site.view):
        return _skip(site, "unknown_rank", "its input, in a body, has no known rank")
    return site


def _node_names(model: Model) -> dict[tuple[Scope, str], str]:
    """A unique name a node: its own, or its first output's, with the scope where that repeats."""
    nodes = [(scope, node) for scope, node in model.index.nodes() if node_key(node)]
    named = Counter(node.name for _, node in nodes if node.name)
    # The second site of a recurrent node is named after it.
    second = {
        f"{name}{RECURRENT}"
        for _, node in nodes
        if node.op_type in ("LSTM", "GRU", "RNN")
        for name in (node.name, node_key(node))
    }
    names: dict[tuple[Scope, str], str] = {}
    free = {name for name, count in named.items() if count == 1 and name not in second}
    taken = free | second
    for scope, node in nodes:
        key = node_key(node)
        if node.name in free:
            names[scope, key] = node.name
            continue
        wish = key if key not in taken else f"{scope}/{key}"
        count = 1
        while wish in taken:
            count += 1
            wish = f"{scope}/{key}#{count}"
        taken.add(wish)
        names[scope, key] = wish
    return names


def find_units(model: Model, sites: list[Site]) -> list[Unit]:
    """Sites that use one weight in one way are one unit: factored once, split all or none."""
    grouped: dict[tuple[object, ...], list[Site]] = defaultdict(list)
    for site in sites:
        ref = site.weight
        key = (
            ref.scope,
            ref.name,
            ref.recipe,
            site.orientation,
            site.d_in,
            site.d_out,
            site.groups,
        )
        grouped[key].append(site)
    return [
        Unit(members[0].name, "weight", tuple(members), _tied(model, members))
        for members in grouped.values()
    ]


def _tied(model: Model, members: list[Site]) -> bool:
    """Whether the dense weight stays when these sites are split, so that nothing is freed."""
    if any(site.hold for site in members):
        return True
    ours = {(site.scope, site.output) for site in members}
    index, ref = model.index, members[0].weight
    if index.overridable(ref.scope, ref.name):
        return True
    stack, seen = [(ref.scope, ref.name)], {(ref.scope, ref.name)}
    while stack:
        home, name = stack.pop()
        if name in index.named_elsewhere:
            return True
        for use in index.uses(home, name):
            if use.node is None:
                return True
            if (use.scope, node_key(use.node)) in ours:
                continue
            if not is_move(use.node):
                return True
            behind = {(use.scope, output) for output in use.node.output if output} - seen
            seen |= behind
            stack += behind
    return False
