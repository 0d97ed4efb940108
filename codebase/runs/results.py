"""The results of a run: printed, and saved in logs/<name>/results.json."""

import io
import json
import math

from PIL import Image

from codebase import evaluate, pictures
from codebase.errors import NonFiniteError
from codebase.pictures import Picture
from codebase.runs.files import write_atomically
from codebase.runs.tables import means, printed_name


def read_results(run, step):
    """This run's results.json, if it is of this step; an empty dict if it is not, absent or damaged."""
    try:
        record = json.loads((run.logs / "results.json").read_text(encoding="utf-8"))
        means(record["results"]), dict(record["experiment"])
        del record["evaluated"]
        return record if record.get("step") == step else {}
    except Exception:  # a damaged file can hold anything; its numbers are computed again
        return {}


def finished(run):
    """Does results.json hold everything that a training with these flags would report?"""
    record, flags = read_results(run, run.flags.iter_max), run.flags
    bounds = {f"iwae_{m}" for m in flags.iw_eval} if flags.train == 2 else set()
    splits = record.get("results", {}).items()
    wanted = [numbers for name, numbers in splits if "nelbo" in numbers and (name == "subset" or flags.full)]
    return record.get("complete") is True and all(bounds <= numbers.keys() for numbers in wanted)


def write_results(run):
    """Write run.record to results.json."""
    run.logs.mkdir(parents=True, exist_ok=True)
    text = json.dumps(run.record, indent=1).encode()
    write_atomically(run.logs / "results.json", lambda file: file.write(text))


def looked_at(model, look):
    """What look(model) returns, {name: Picture or Estimate}. NonFiniteError if a number is not finite."""
    with evaluate.evaluating(model):
        shown = dict(look(model))
    for name, value in shown.items():
        if isinstance(value, Picture):
            continue
        if not isinstance(value, evaluate.Estimate):
            shown[name] = value = evaluate.Estimate(float(value), math.nan, 1)
        if not math.isfinite(value.mean):
            raise NonFiniteError(f"{name} of `look` is {value.mean}.")
    return shown


def show(run, writer, step, shown):
    """Write the points of run.curves at this step, and what looked_at has returned; None if it was not called.

    writer: an EventFile, or None.
    """
    numbers = {name: value for name, value in (shown or {}).items() if not isinstance(value, Picture)}
    for name, number in numbers.items():
        run.curves.setdefault(name, {})[step] = number.mean
    if writer is not None:
        for tag, points in run.curves.items():
            if step in points:
                writer.add_scalar(tag, points[step], step)
        writer.flush()
    if shown is None:
        return
    run.numbers = numbers
    run.logs.mkdir(parents=True, exist_ok=True)
    for name, picture in shown.items():
        if name not in numbers:
            png = write_png(run, name, picture)
            if writer is not None:
                tag = "gen/samples" if name == "samples" else name  # TensorBoard sorts them, and opens the first ones
                writer.add_image(tag, png, picture.pixels.shape, step, picture.legend)
    if writer is not None:
        writer.flush()
        write_png(run, "curves", pictures.curves(run.curves))
        run.record["step"] = step
        write_results(run)


def write_png(run, name, picture):
    """Write a Picture to logs/<run>/<name>.png. Returns the contents of the file."""
    png = io.BytesIO()
    Image.fromarray(picture.pixels).save(png, format="png")
    write_atomically(run.logs / f"{name}.png", lambda file: file.write(png.getvalue()))
    return png.getvalue()


def report(run, model, splits, bits=False):
    """Print the bounds on the test images, and save them in results.json; print the numbers of the last look.

    splits: as data.binary_splits returns them.
    The ELBO always; the IWAE bounds with --train 0 or 2, on the whole test set only with --full 1. bits: also in bits
    per dimension, for models of 8-bit images; of a density, those of the images with noise (evaluate.dequantised).
    """
    noise, ms = bits and model.is_density, run.flags.iw_eval

    def in_bits(nats):
        return evaluate.bits_per_dimension(nats, run.data.x_dim, model.is_density)

    if splits:
        print("\nIn nats, each ± its standard error over the images.")
    for name, split in splits.items():
        if name == "train":
            continue
        print(f"\n{run.data.name}, {name}: {len(split[0]):,} images")
        terms = evaluate.elbo(model, split)
        print("  ".join(f"{printed_name(term)}: {value}" for term, value in terms.items()), flush=True)
        add_results(run, name, terms)
        if bits:
            noisy = evaluate.elbo(model, split, noise=True) if noise else terms
            nelbo, rec = in_bits(noisy["nelbo"]), in_bits(noisy["rec"])
            print(f"Bits per dimension: NELBO: {nelbo:.4f}  Rec: {rec:.4f}", flush=True)
            add_results(run, name, {"nelbo_bits": nelbo, "rec_bits": rec})
        if len(split[0]) > 1:  # nothing varies with a single image
            units = evaluate.latent_units(model, split)
            print(f"Active latent units: {units['active']} of {units['units']}", flush=True)
            add_results(run, name, {"latent_units": units})
        if run.flags.train != 1 and (name == "subset" or run.flags.full):
            bounds, ess = evaluate.iwae(model, split, ms)
            noisy = evaluate.iwae(model, split, ms, noise=True)[0] if noise else bounds
            for m, value in bounds.items():
                coded = {f"iwae_{m}_bits": in_bits(noisy[m])} if bits else {}
                more = "".join(f" ({each:.4f} bits per dimension)" for each in coded.values())
                print(f"Negative {printed_name(f'iwae_{m}')}: {value}{more}")
                add_results(run, name, {f"iwae_{m}": value} | coded)
            percent = evaluate.Estimate(100 * ess.mean, 100 * ess.se, ess.n)
            print(f"Relative effective sample size of {max(ms)} importance weights, %: {percent}", flush=True)
            if max(ms) > 1:
                gap, few = evaluate.iwae_gap(ess, max(ms)), int((max(ms) * ess.values < 10).sum())
                but = f"; more for {few:,} images with fewer than 10 effective samples" if few else ""
                print(f"Estimated gap of {printed_name(f'iwae_{max(ms)}')} to -log p(x): {gap:.3f}{but}", flush=True)
                add_results(run, name, {"iwae_gap": gap})
            add_results(run, name, {"ess": ess.record() | {"samples": max(ms)}})
    if run.numbers:
        lines = (f"{printed_name(name.replace('/', ' '))}: {number}" for name, number in run.numbers.items())
        print("\n" + "\n".join(lines), flush=True)


def report_confusion(run, model):
    """Print how the classifier q(y|x) classifies the test images, and save the counts in results.json."""
    counts = evaluate.accuracy(evaluate.classify(model, run.data.x_test), run.data.y_test)[1].tolist()
    print(f"\nTest images by true class (row) and predicted class (column){', the first 20' * (len(counts) > 20)}")
    rows = [["", *range(len(counts))], *([c, *of_class] for c, of_class in enumerate(counts))]
    print("\n".join("".join(f"{cell:>6}" for cell in row[:21]) for row in rows[:21]), flush=True)
    add_results(run, "test", {"confusion": counts})


def add_results(run, split, numbers):
    """Add numbers, {name: Estimate, or what JSON has}, to the results of a split, and write results.json."""
    records = {name: each.record() if isinstance(each, evaluate.Estimate) else each for name, each in numbers.items()}
    run.record["results"].setdefault(split, {}).update(records)
    write_results(run)


def complete(run):
    """Write results.json with the numbers of the last look: the run is complete. Say where its pictures are."""
    for name, number in run.numbers.items():
        *split, name = name.split("/", 1)
        add_results(run, "".join(split), {name: number})
    run.record["complete"] = True
    write_results(run)
    print(f"\npictures     {run.logs}: {', '.join(sorted(path.name for path in run.logs.glob('*.png')))}", flush=True)
    if run.flags.train == run.flags.replicates == 1 and "subset" in run.record["results"]:
        glyphs = " and --dataset glyphs" * (run.data.name == "glyphs" and run.flags.dataset == "auto")
        print(f"next         for the IWAE bounds: the same command with --train 0{glyphs}", flush=True)
