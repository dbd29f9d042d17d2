"""The ranking page as a local web server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.browser.page import TEMPLATES, Shown, Unknown, View, context, point_text, view_of
from analysis.document.markup import environment

if TYPE_CHECKING:
    import flask
    from werkzeug.exceptions import HTTPException

HOSTS = ["127.0.0.1", "localhost"]  # any other name for this server is an attack by DNS
_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_KEPT_SECONDS = 3600  # that a browser keeps an image


def make_app(shown: Shown) -> flask.Flask:
    """Return the server of the page: GET only, for this machine only, no file by its name."""
    import flask
    from werkzeug.exceptions import HTTPException

    app = flask.Flask("labtune-browse", static_folder=None, template_folder=None)
    app.config["TRUSTED_HOSTS"] = HOSTS
    page = environment(TEMPLATES).get_template("browse.html.j2")
    # read once: what is served does not depend on what a request names
    files = {kind: (TEMPLATES / f"browse.{kind}").read_bytes() for kind in ("css", "js")}

    def view() -> View:
        try:
            return view_of(shown, flask.request.args)
        except Unknown as e:
            flask.abort(404, str(e))

    @app.get("/")
    def index() -> str:
        return page.render(static=False, css="", **context(shown, view()))

    @app.get("/point")
    def point() -> dict[str, str]:
        asked = view()
        return {"text": point_text(shown.ranked(asked.trial), asked)}

    @app.get("/image/<int:trial>/<int:number>", defaults={"large": False})
    @app.get("/image/<int:trial>/<int:number>/large", defaults={"large": True})
    def image(trial: int, number: int, large: bool) -> flask.Response:
        return _picture(shown, trial, number, large)

    @app.get("/browse.<any(css, js):kind>")
    def browse(kind: str) -> flask.Response:
        mimetype = {"css": "text/css", "js": "text/javascript"}[kind]
        return flask.Response(files[kind], mimetype=mimetype)

    app.get("/favicon.ico")(lambda: ("", 204))  # a browser asks for it to show an image alone
    app.after_request(_guarded)
    app.register_error_handler(HTTPException, _refused)
    return app


def _refused(error: HTTPException) -> flask.Response:
    import flask

    words = f"{error.code} {error.name}. {error.description or ''}\n"
    return flask.Response(words, error.code, mimetype="text/plain")


def _guarded(answer: flask.Response) -> flask.Response:
    answer.headers.update(_HEADERS)
    if answer.mimetype == "image/jpeg":  # a browser that shows it alone styles it inline
        answer.headers.pop("Content-Security-Policy")
    return answer


def _picture(shown: Shown, trial: int, number: int, large: bool) -> flask.Response:
    """Return an image by its place in the stored list of a trial, as JPEG."""
    import flask

    if trial >= len(shown.trials):
        flask.abort(404)
    ranked = shown.ranked(shown.trials[trial])
    if number >= len(ranked.files):
        flask.abort(404)
    pictures, file = ranked.pictures, ranked.files[number]
    found = pictures.large(file) if large else pictures.thumbnail(file)
    if found is None:
        flask.abort(404, "This image is not there, or cannot be read.")
    answer = flask.Response(found, mimetype="image/jpeg")
    answer.headers["Cache-Control"] = f"private, max-age={_KEPT_SECONDS}"
    return answer
