# SPDX-License-Identifier: Apache-2.0
"""The shop as a Flask application, which OpenTelemetry's auto-instrumentation knows how to trace."""

from __future__ import annotations

import time

from flask import Flask, Response, request  # type: ignore[import-not-found]
from routes import respond  # type: ignore[import-not-found]  # its neighbour: this runs as a script

application = Flask("shop")


def answer(**_: str) -> Response:
    target = request.full_path if request.query_string else request.path
    reply = respond(request.method, target, request.get_data())
    if reply.delay_s:
        time.sleep(reply.delay_s)
    return Response(reply.body, reply.status, mimetype="application/json")


for rule in ("/", "/r/<id>", "/products/<id>", "/search", "/recommendations", "/orders", "/reports/<id>"):
    application.add_url_rule(rule, rule, answer, methods=["GET", "POST"])
