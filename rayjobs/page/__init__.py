"""A run's report page: one HTML file that explains the run, made from its folder's files alone."""

from rayjobs.page.render import PAGE, write_page

__all__ = ["PAGE", "write_page"]
