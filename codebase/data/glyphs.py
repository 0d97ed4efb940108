"""The built-in digits: images like handwriting, in the shapes of MNIST and SVHN, made from a seed without a download.

A font gives each digit a few skeletons, made of strokes. A table holds the distances from a grid of points to each
skeleton. A pixel is mapped into it by a random pose and an elastic deformation; it has ink if its distance there is
below half of the stroke's width.

The same seed gives the same bytes on every machine: numpy's RandomState never changes, and IEEE 754 defines elementwise
+, *, / and square roots to the last bit. exp, sin and matrix products are avoided: they differ between machines.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

# For each digit a list of skeletons; a skeleton is a list of strokes; a stroke is a list of points x, y, x, y, ... in
# percent of a box, y downwards. A smooth curve joins the points of a stroke.
FONT = [
    [[[50,0, 22,14, 12,50, 22,86, 50,100, 78,86, 88,50, 78,14, 50,0]],
     [[64,6, 34,6, 14,42, 22,86, 52,100, 82,80, 86,36, 68,4, 46,2]]],
    [[[50,0, 50,100]], [[28,24, 42,14, 54,0], [54,0, 52,100]], [[28,20, 54,0], [54,0, 54,100], [26,100, 80,100]]],
    [[[16,22, 34,3, 62,2, 80,24, 70,50, 40,76, 14,98], [14,98, 88,97]],
     [[18,20, 44,0, 76,14, 70,48, 42,82, 20,97, 12,84, 30,80, 56,96, 90,90]]],
    [[[18,12, 46,0, 76,14, 70,38, 40,48], [40,48, 76,56, 84,80, 54,100, 14,88]],
     [[18,2, 80,2], [80,2, 44,42], [44,42, 78,52, 84,82, 50,100, 14,90]]],
    [[[28,0, 22,30, 14,58], [14,58, 88,55], [72,14, 66,100]], [[66,0, 12,66], [12,66, 92,66], [66,0, 66,100]]],
    [[[80,2, 28,3], [28,3, 22,44], [22,44, 52,36, 82,54, 80,84, 48,100, 14,90]],
     [[84,0, 34,8], [34,8, 26,42], [26,42, 60,46, 78,68, 62,94, 14,98]]],
    [[[72,2, 38,20, 16,60, 26,92, 55,100, 80,80, 70,56, 42,52, 20,70]],
     [[56,0, 28,40, 16,74, 34,99, 68,94, 76,72, 54,58, 24,74]]],
    [[[12,4, 86,4], [86,4, 60,48, 44,100]], [[12,4, 86,4], [86,4, 62,46, 46,100], [34,52, 80,48]],
     [[14,20, 18,6], [18,6, 84,2], [84,2, 72,46, 66,100]]],
    [[[78,14, 52,0, 24,14, 34,38, 64,58, 82,80, 50,100, 18,82, 32,58, 66,38, 78,14]],
     [[50,0, 26,8, 22,30, 50,46, 78,30, 74,8, 50,0], [50,46, 20,60, 18,88, 50,100, 82,88, 80,60, 50,46]]],
    [[[80,24, 54,0, 22,16, 24,44, 54,50, 80,24], [80,24, 78,62, 62,100]],
     [[76,22, 58,2, 28,6, 18,30, 38,50, 66,42, 77,14], [77,14, 75,100]],
     [[78,22, 52,0, 22,18, 26,46, 56,50, 80,22], [80,22, 84,66, 60,98, 22,92]]],
]  # fmt: skip

COUNT = np.array([len(skeletons) for skeletons in FONT])  # skeletons of each digit
FIRST = np.cumsum(COUNT) - COUNT  # index of the first skeleton of each digit

CELLS = 128  # the table of distances: CELLS x CELLS over the square from -0.5 to 1.5 boxes
KNOTS = 6  # control points of the deformation, in each direction
CHUNK = 512  # images drawn at a time, so that the temporary arrays stay in the processor's cache

# Ranges of: height (pixels), width / height, slant, turn (tangent of half the rotation angle), place x and y (pixels),
# half width of the stroke (pixels; in colour: / height), softness of its edge (pixels) and deformation (pixels).
GREY = ((14, 22), (0.5, 1.15), (-0.35, 0.65), (-0.18, 0.18), (-2.5, 2.5), (-2.5, 2.5), (0.5, 2.0), (0.9, 1.6), (-7, 7))
COLOUR = ((14, 30), (0.45, 0.95), (-0.15, 0.35), (-0.12, 0.12), (-3, 3), (-3, 3), (0.03, 0.12), (0.8, 3.5), (-2, 2))


def curve(points, steps=8):
    """A smooth curve (Catmull-Rom spline) through a stroke's points, `steps` segments between two. Returns (S, 2)."""
    p = np.reshape(points, (-1, 2)) / 100
    closed = (p[0] == p[-1]).all()
    p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    if closed:
        p[0], p[-1] = p[-3], p[2]  # smooth where the curve closes
    t = np.arange(steps)[:, None] / steps
    spans = [
        0.5 * (2 * b + t * (c - a) + t * t * (2 * a - 5 * b + 4 * c - d) + t * t * t * (3 * b - a - 3 * c + d))
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return np.concatenate([*spans, p[-2:-1]])


def distance_table(strokes):
    """Distance, in boxes, from every node of the table to the nearest stroke. Returns (CELLS, CELLS), row = y."""
    node = np.arange(CELLS) * 2 / (CELLS - 1) - 0.5
    x, y = node[None, :], node[:, None]
    nearest = np.full((CELLS, CELLS), np.inf)
    for stroke in strokes:
        for (ax, ay), (bx, by) in pairwise(curve(stroke)):
            dx, dy = bx - ax, by - ay
            along = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
            square = (ax + along * dx - x) * (ax + along * dx - x) + (ay + along * dy - y) * (ay + along * dy - y)
            nearest = np.minimum(nearest, square)
    return np.sqrt(nearest).astype(np.float32)


def spline_weights(size, knots):
    """Weights of `knots` control values of a uniform cubic B-spline at `size` pixels. Returns (size, knots) float32."""
    at = (np.arange(size) + 0.5) * (knots - 3) / size
    span = at.astype(int)
    t = at - span
    basis = [(1 - t) * (1 - t) * (1 - t), 3 * t * t * t - 6 * t * t + 4, 3 * t * (1 + t - t * t) + 1, t * t * t]
    weights = np.zeros((size, knots))
    for k, w in enumerate(basis):
        weights[np.arange(size), span + k] = w / 6
    return weights.astype(np.float32)


def ink(tables, size, skeleton, pose, bend):
    """How much ink each pixel has, in [0, 1]. Returns (n, size, size) float32.

    tables: (S * CELLS * CELLS,) distances to S skeletons; skeleton: (n,), indices 0 to S - 1; pose: (n, 8) float32, as
    in GREY but with width and half width in pixels; bend: (n, 2, knots, knots) displacements in pixels.
    """
    height, width, slant, turn, place_x, place_y, half_width, softness = pose.T[:, :, None, None]

    # Elastic deformation: the spline's displacement of every pixel, rows first, then columns.
    weights = spline_weights(size, bend.shape[-1])
    rows = sum(weights[:, k, None] * bend[:, :, None, k, :] for k in range(bend.shape[-1]))  # (n, 2, size, knots)
    moved = sum(rows[..., k, None] * weights[:, k] for k in range(bend.shape[-1]))  # (n, 2, size, size)

    # From pixels back to the box of the skeleton: place, rotation, slant, size.
    pixel = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
    x = pixel[None, None, :] - place_x + moved[:, 0]
    y = pixel[None, :, None] - place_y + moved[:, 1]
    cos, sin = (1 - turn * turn) / (1 + turn * turn), 2 * turn / (1 + turn * turn)
    across, down = cos * x + sin * y, cos * y - sin * x
    half, scale, last = np.float32(0.5), np.float32((CELLS - 1) / 2), np.float32(CELLS - 1.001)
    u = np.clip(((across + slant * down) / width + half + half) * scale, 0, last)
    v = np.clip((down / height + half + half) * scale, 0, last)

    # The distance at (u, v), interpolated between the four nearest nodes of the table.
    column, row = u.astype(np.int32), v.astype(np.int32)
    u -= column
    v -= row
    node = row * CELLS + column + (skeleton.astype(np.int32) * (CELLS * CELLS))[:, None, None]
    top, bottom = tables.take(node), tables.take(node + CELLS)
    top += u * (tables.take(node + 1) - top)
    bottom += u * (tables.take(node + CELLS + 1) - bottom)
    distance = top + v * (bottom - top)
    return np.clip((half_width - distance * height) / softness + half, 0, 1)


def between(random, low, high, *shape):
    """Bell-shaped random numbers between low and high: the mean of three uniform ones. float32."""
    return (low + (high - low) * random.random_sample((3, *shape)).mean(0)).astype(np.float32)


def draw(n, seed, colour=False):
    """n digits and their labels 0 to 9, int64, (n,), a function of (n, seed, colour) only.

    The images, uint8, are white on black, (n, 1, 28, 28), or with colour (n, 3, 32, 32): digits on a background of
    another colour, parts of other digits at the edges, as in house numbers.
    """
    random = np.random.RandomState(seed)
    size, (*ranges, bends) = (32, COLOUR) if colour else (28, GREY)
    tables = np.concatenate([distance_table(strokes).ravel() for skeletons in FONT for strokes in skeletons])
    labels = random.randint(0, 10, n)
    skeleton = FIRST[labels] + (random.random_sample(n) * COUNT[labels]).astype(np.int64)
    pose = np.stack([between(random, low, high, n) for low, high in ranges], axis=1)  # (n, 8)
    pose[:, 1] *= pose[:, 0]
    if colour:
        pose[:, 6] *= pose[:, 0]
    bend = between(random, *bends, n, 2, KNOTS, KNOTS)

    if colour:
        # Half of the images get a neighbour on the left, and half on the right: another digit in the same style.
        beside = []
        for side in (-1, 1):
            shifted = pose.copy()
            shifted[:, 4] += side * (pose[:, 1] * between(random, 0.95, 1.35, n) + between(random, 1, 5, n))
            shifted[:, 5] += between(random, -2, 2, n)
            other = (random.random_sample(n) * sum(COUNT)).astype(np.int64)
            beside.append((shifted, other, random.random_sample(n) < 0.5))

        # Background and digit: two colours whose brightness differs by about a fifth or more, with a gradient of light.
        hue = random.random_sample((2, n, 3)) * 0.5 - 0.25
        bright = between(random, 0.05, 0.95, n)
        gap = between(random, 0.2, 0.75, n)
        up = np.where(random.random_sample(n) < 0.5, bright + gap < 1, bright - gap < 0)
        other = np.where(up, bright + gap, bright - gap)
        ground, front = np.clip(np.stack([bright, other])[..., None] + 0.4 * hue, 0, 1).astype(np.float32)  # (n, 3)
        light = between(random, -0.25, 0.25, n, 2)

    images = np.empty((n, 3 if colour else 1, size, size), np.uint8)

    def draw_chunk(start):
        part = slice(start, start + CHUNK)
        amount = ink(tables, size, skeleton[part], pose[part], bend[part])[:, None]
        if colour:
            for shifted, other, present in beside:
                who = np.flatnonzero(present[part])
                drawn = ink(tables, size, other[part][who], shifted[part][who], bend[part][who])
                amount[who, 0] = np.maximum(amount[who, 0], drawn)
            across = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size) - np.float32(0.5)
            shade = light[part, 0, None, None] * across + light[part, 1, None, None] * across[:, None]
            paint = ground[part, :, None, None] + (front - ground)[part, :, None, None] * amount
            amount = np.clip(paint + shade[:, None], 0, 1)
        images[part] = (amount * np.float32(255) + np.float32(0.5)).astype(np.uint8)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(draw_chunk, range(0, n, CHUNK)))
    return images, labels
