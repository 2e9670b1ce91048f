"""Metrics of steps as a healthy run has them, and what differs in an ill one."""

FINE = {
    "reward/mean": 0.5,
    "correct": 0.5,
    "response/length": 20.0,
    "response/truncated": 0.1,
    "response/entropy": 0.8,
    "signal/generated": 100,
    "signal/carrying": 60,
    "signal/taken/keep_top": 25,
    "signal/taken/group_advantage": 15,
    "signal/taken/clipped": 0,
    "loss": 0.1,
    "grad_norm": 0.3,
    "skipped": 0,
    "ratio_max": 1.2,
    "kl_k3_old_policy": 0.01,
    "rewards/right": 0.5,
    "rewards/right/share": 0.8,
    "rewards/polite": 0.5,
    "rewards/polite/share": 0.2,
}

NO_TOKEN = {"signal/carrying": 0, "signal/taken/keep_top": 60, "signal/taken/group_advantage": 40}


def run(*phases: tuple[int, dict]) -> list[dict]:
    """Steps in phases of (number, what differs from a healthy step)."""
    changes = [change for number, change in phases for _ in range(number)]
    return [{"step": i + 1, **FINE, **change} for i, change in enumerate(changes)]
