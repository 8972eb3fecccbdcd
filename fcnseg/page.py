"""Self-contained HTML pages, without scripts, other files or network access."""

from typing import Any

import jinja2

import fcnseg


def render_page(package: str, template: str, **values: Any) -> bytes:
    """Fill a template that extends `page.html.jinja`.

    Args:
        package: The package that holds the template.
        template: The template's file name.
        values: The values of the template's variables.

    Returns:
        UTF-8 HTML.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package, ""), jinja2.PackageLoader("fcnseg", "")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["percent"] = percent
    page = environment.get_template(template).render(version=fcnseg.__version__, **values)
    # A file's name need not be valid Unicode.
    return page.encode("utf-8", "backslashreplace")


def percent(fraction: float) -> str:
    """Write a fraction as a percentage."""
    return f"{100 * fraction:.1f} %"
