"""What cygnet answers in JSON, as the role's tasks need it: a plan as lines, and which tunnels are not as they should be."""

UP = ("up", "rekeying")
SIGNS = {"add": "+", "remove": "-", "change": "~"}


def cygnet_plan_lines(plan):
    """The answer of `cygnet plan --json` as the command shows it. It has no keys."""
    lines = []
    for step in plan.get("steps") or []:
        if step["action"] == "keep":
            continue
        cost = {"add": "new", "remove": "removed"}.get(step["action"], step["impact"].replace("-", " "))
        name = f"{step['object'].replace('-', ' ')} {step['name']}".strip()
        lines.append(f"{SIGNS[step['action']]} {name}: {cost}")
        for change in step["changes"]:
            before, after = change["before"], change["after"]
            values = f"{before or '(none)'} -> {after or '(none)'}" if before or after else "(changed)"
            lines.append(f"    {change['field']}: {values}")
    return lines + [f"note: {note}" for note in plan.get("notes") or []]


def cygnet_waits_for_restart(plan):
    """Keys of the daemon that take effect when it is restarted."""
    daemon = [step for step in plan.get("steps") or [] if step["object"] == "daemon"]
    return [change["field"] for step in daemon for change in step["changes"] if change["impact"] == "restart"]


def is_up(tunnel):
    """Whether a tunnel has SAs."""
    return tunnel["state"] in UP


def cygnet_expected(config, before, ready, exempt=()):
    """Names of tunnels that must be up after a change: those that were, and those whose other end has been configured
    (`ready`: names of such ends). `before` is the answer of `cygnet status --json` from before, {} if there was none."""
    was_up = {tunnel["name"] for tunnel in before.get("tunnels") or [] if is_up(tunnel)}
    names = []
    for tunnel in config.get("tunnels") or []:
        other_is_ready = tunnel["customer_gateway"] in ready and tunnel.get("start") != "on-demand"
        if tunnel["name"] not in exempt and (tunnel["name"] in was_up or other_is_ready):
            names.append(tunnel["name"])
    return names


def what_is_wrong(tunnel, before):
    """Why a tunnel is not as it should be; None if it is. An error that was there before the change is none of its doing."""
    error = tunnel.get("last_error")
    if not is_up(tunnel):
        return tunnel["state"] + (f", {error}" if error else "")
    if error and error != before.get("last_error"):
        return error
    # Such as new keys that the peer refuses, while the old ones still carry the traffic.
    warnings = [text for text in tunnel.get("warnings") or [] if text not in (before.get("warnings") or [])]
    if warnings:
        return warnings[0]
    coverage = tunnel.get("coverage") or {}
    if coverage.get("covered", 0) < coverage.get("pairs", 0):
        return f"carries {coverage['covered']} of {coverage['pairs']} pairs of networks"
    if tunnel.get("unanswered_s") is not None:
        return f"nothing has come in for {tunnel['unanswered_s']} s"
    return None


def cygnet_unmet(status, expected, before):
    """Of the expected tunnels those that are not as they should be, each with the reason. Without `before` only states count,
    and no errors and warnings that may be old."""
    before = before or status
    tunnels = {tunnel["name"]: tunnel for tunnel in status.get("tunnels") or []}
    earlier = {tunnel["name"]: tunnel for tunnel in before.get("tunnels") or []}
    unmet = []
    for name in expected:
        if name not in tunnels:
            unmet.append(f"{name}: the daemon does not know it")
            continue
        wrong = what_is_wrong(tunnels[name], earlier.get(name, {}))
        if wrong:
            unmet.append(f"{name}: {wrong}")
    return unmet


class FilterModule:
    """Filters of the role."""

    def filters(self):
        return {
            "cygnet_plan_lines": cygnet_plan_lines,
            "cygnet_waits_for_restart": cygnet_waits_for_restart,
            "cygnet_expected": cygnet_expected,
            "cygnet_unmet": cygnet_unmet,
        }
