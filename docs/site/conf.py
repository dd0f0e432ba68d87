"""Settings of the site: Sphinx builds it from the repository's root, without a network."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "chatbot-arch"
html_title = project
language = "en"
smartquotes = False  # two hyphens of an option stay two
root_doc = "README"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "deploy/**.md",
    "swaps/**.md",
    "nbs/**.ipynb",
]
# Folders that are not searched either.
exclude_patterns = ["**.ipynb_checkpoints", "**/node_modules", ".*", "build", "dist", "site"]

extensions = ["myst_nb", "reading"]
nb_execution_mode = "off"  # the committed outputs are shown
nb_ipywidgets_js = {}
nb_merge_streams = True
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a notebook may begin a section below the second level

html_theme = "furo"
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#1f5fa8",
        "color-brand-content": "#1f5fa8",
        "color-brand-visited": "#6b3fa0",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7db4f0",
        "color-brand-content": "#7db4f0",
        "color-brand-visited": "#c4a5ee",
    },
    "top_of_page_buttons": [],
}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
templates_path = ["templates"]
html_favicon = "static/favicon.svg"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_show_copyright = False
html_copy_source = False
html_use_index = False
html_permalinks_icon = "#"
