"""`fsqueue gpus`: this machine's GPUs and their weights."""

from __future__ import annotations

from dataclasses import asdict

import click

from fsqueue.cli.options import SETTINGS, json_option, print_json, print_table


@click.command("gpus", context_settings=SETTINGS)
@json_option
def gpus(as_json: bool) -> None:
    """Show this machine's visible GPUs and their weights.

    A weight is a speed relative to an RTX 3090. Override one with `plan --weight NAME=WEIGHT`. A
    card that is cut by MIG is shown as its instances; `run` starts a worker for each.
    """
    from fsqueue.gpu.nvml import visible_gpus
    from fsqueue.gpu.sharing import mps_directory
    from fsqueue.gpu.weights import GPU_WEIGHTS, get_gpu_weight, known_weight, short_name

    rows = []
    for gpu in visible_gpus():
        model = short_name(gpu.name, memory_gib=gpu.memory_gib)
        weight = get_gpu_weight(gpu.name, memory_gib=gpu.memory_gib)
        known = known_weight(model) is not None
        why = f"{model} in the table" if known else "not in the table: the default"
        if known and gpu.mig:
            why = "its part of the card's weight in the table"
        rows.append(asdict(gpu) | {"model": model, "weight": weight, "why": why})
    directory = mps_directory()
    if as_json:
        print_json({"gpus": rows, "mps": directory})
    elif rows:
        print_table(
            ["INDEX", "NAME", "UUID", "MEMORY", "WEIGHT", "WHY"],
            [
                [
                    str(r["index"]),
                    r["name"],
                    r["uuid"],
                    f"{r['memory_mib']} MiB",
                    f"{r['weight']:.2f}",
                    r["why"],
                ]
                for r in rows
            ],
            left=3,
        )
        if directory:
            click.echo(f"MPS: {directory}. The workers of one GPU run side by side.")
    else:
        click.echo(
            f"No GPU is visible here (no NVIDIA driver, or CUDA_VISIBLE_DEVICES hides all). "
            f"Workers started here use the CPU, weight {GPU_WEIGHTS.get('cpu', 1.0):.2f}."
        )
