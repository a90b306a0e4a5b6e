"""A number of a graph as a function of the sizes of the video: a polynomial of few terms, found from a few captures.

Dims of a tensor are products of affine functions of frames, height and width, so they are multilinear: sums of the
products of some of them. Nearly all have one such term beside a constant (`2 F`, `1/4 F H W + 226`, `H + 2`), some two.
Forms are exact: rational coefficients that give every captured number back, or none.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sympy

NAMES = ("F", "H", "W")  # frames, rows and columns, as the model counts them: latents for a model of diffusers
Point = tuple[int, int, int]
Monomial = tuple[int, ...]  # which of the three are multiplied: () is the constant 1
MONOMIALS: tuple[Monomial, ...] = tuple(m for size in range(4) for m in itertools.combinations(range(3), size))


@dataclass(frozen=True)
class Polynomial:
    """A polynomial: coefficient of each monomial, zeros left out."""

    terms: tuple[tuple[Monomial, Fraction], ...]

    def at(self, point: Point) -> int | None:
        """The value at some sizes; None where it is no whole number, so that no tensor can have it."""
        found = sum((c * product(m, point) for m, c in self.terms), Fraction(0))
        return int(found) if found.denominator == 1 else None

    def symbolic(self) -> sympy.Expr:
        """As an expression in F, H and W."""
        import sympy

        found: Any = sympy.Integer(0)
        for monomial, c in self.terms:
            found += sympy.Rational(c.numerator, c.denominator) * sympy.Mul(*(symbols()[i] for i in monomial))
        return found


def symbols() -> tuple[Any, ...]:
    """F, H and W."""
    import sympy

    return tuple(sympy.Symbol(name, integer=True, positive=True) for name in NAMES)


def product(monomial: Monomial, point: Point) -> int:
    """A monomial at some sizes."""
    found = 1
    for index in monomial:
        found *= point[index]
    return found


def constant(value: int) -> Polynomial:
    """A number that does not depend on the sizes."""
    return Polynomial((((), Fraction(value)),) if value else ())


def tells_apart(points: Sequence[Point], free: set[int]) -> bool:
    """Whether forms of one and two terms are unique at four points: no three monomials and 1 are dependent there.

    Args:
        points: four sizes.
        free: which of frames, height and width the monomials are made of.
    """
    rows = [[product(m, p) - product(m, points[0]) for p in points[1:]] for m in MONOMIALS if m and set(m) <= free]
    if len(rows) < 3:
        return all(any(row) for row in rows)
    return all(_determinant(*three) for three in itertools.combinations(rows, 3))


def _determinant(a: Sequence[int], b: Sequence[int], c: Sequence[int]) -> int:
    return a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0])


def corners(points: Sequence[Point]) -> tuple[Point, Point]:
    """The smallest and the largest of each size."""
    low = (min(p[0] for p in points), min(p[1] for p in points), min(p[2] for p in points))
    return low, (max(p[0] for p in points), max(p[1] for p in points), max(p[2] for p in points))


def varying(points: Sequence[Point]) -> set[int]:
    """Which of the sizes differ among points."""
    return {i for i in range(3) if len({p[i] for p in points}) > 1}


def fit(points: Sequence[Point], values: Sequence[int]) -> Polynomial | None:
    """The form that takes these values at these points, if just one of fewest terms does.

    One term and a constant are two numbers, so two of four points are a check; two terms leave one.

    Args:
        points: sizes of the captures; forms must differ there (`tells_apart`).
        values: of one number, at each of them.
    """
    if len(set(values)) == 1:
        return constant(values[0])
    rows = [m for m in MONOMIALS if m and set(m) <= varying(points)]
    for monomial in rows:
        found = _affine([product(monomial, p) for p in points], values)
        if found is not None:
            return _form(((monomial, found[0]), ((), found[1])))
    pairs = [f for f in (_two_terms(points, values, pair) for pair in itertools.combinations(rows, 2)) if f is not None]
    return pairs[0] if len(pairs) == 1 else None


def _affine(x: Sequence[int], y: Sequence[int]) -> tuple[Fraction, Fraction] | None:
    """`y = a x + b`, where it holds at every point."""
    other = next((i for i in range(1, len(x)) if x[i] != x[0]), None)
    if other is None:
        return None
    a = Fraction(y[other] - y[0], x[other] - x[0])
    b = y[0] - a * x[0]
    return (a, b) if all(a * u + b == v for u, v in zip(x, y, strict=True)) else None


def _two_terms(points: Sequence[Point], values: Sequence[int], pair: tuple[Monomial, Monomial]) -> Polynomial | None:
    """`values = a m + b n + c`, where four points or more say so."""
    if len(points) < 4:
        return None
    m = [product(pair[0], p) - product(pair[0], points[0]) for p in points]
    n = [product(pair[1], p) - product(pair[1], points[0]) for p in points]
    v = [value - values[0] for value in values]
    for i, j in itertools.combinations(range(1, len(points)), 2):
        determinant = m[i] * n[j] - m[j] * n[i]
        if determinant:
            a = Fraction(v[i] * n[j] - v[j] * n[i], determinant)
            b = Fraction(m[i] * v[j] - m[j] * v[i], determinant)
            if any(a * x + b * y != z for x, y, z in zip(m, n, v, strict=True)):
                return None
            c = values[0] - a * product(pair[0], points[0]) - b * product(pair[1], points[0])
            return _form(((pair[0], a), (pair[1], b), ((), c)))
    return None


def _form(terms: Sequence[tuple[Monomial, Fraction]]) -> Polynomial:
    return Polynomial(tuple(sorted((m, c) for m, c in terms if c)))
