"""Rebuilds the world's models: `python -m sharpening.shapes.train {vae,clip,sdxl,heads} --output_dir DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    """Parse the command line and run one training."""
    parser = argparse.ArgumentParser(prog="python -m sharpening.shapes.train", description=__doc__)
    parser.add_argument("model", choices=("vae", "clip", "sdxl", "heads"))
    parser.add_argument("--output_dir", type=Path, required=True, help="folder that receives the safetensors")
    parser.add_argument("--vae", type=Path, help="folder of the trained VAE (clip, sdxl)")
    parser.add_argument(
        "--start_from",
        type=Path,
        help="folder of a VAE whose first phases are done (vae), or of a pipeline (sdxl)",
    )
    parser.add_argument("--start_phase", type=int, default=0, help="phases that the --start_from VAE has had (vae)")
    parser.add_argument("--start_step", type=int, default=0, help="steps that the --start_from pipeline has had (sdxl)")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: what the shipped model was trained for)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, scenes and captions (default: 0)")
    args = parser.parse_args()
    options = {"seed": args.seed} | ({"steps": args.steps} if args.steps else {})
    if args.model in ("clip", "sdxl") and args.vae is None:
        parser.error(f"{args.model} needs --vae, the folder that `train vae` wrote")
    if args.model == "vae":
        from sharpening.shapes.train_vae import train_vae

        train_vae(args.output_dir, args.start_from, args.start_phase, **options)
    elif args.model == "clip":
        from sharpening.shapes.train_clip import train_clip

        train_clip(args.output_dir, args.vae, **options)
    elif args.model == "heads":
        from sharpening.shapes.train_heads import train_heads

        train_heads(args.output_dir, **options)
    else:
        from sharpening.shapes.train_sdxl import train_sdxl

        train_sdxl(args.output_dir, args.vae, start_from=args.start_from, start_step=args.start_step, **options)


if __name__ == "__main__":
    main()
