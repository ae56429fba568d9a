import uuid

from celery import chain
from celery.result import AsyncResult
from flask import Flask, g, jsonify, request

from webshop.celery_app import app as celery
from webshop.images import make_album
from webshop.orders import apologize, charge, import_products, invoice, send_mail

app = Flask(__name__)
TWO_WEEKS = 14 * 86_400


@app.before_request
def name_request():
    g.request_id = request.headers.get("X-Request-Id", uuid.uuid4().hex)


@app.post("/orders")
def order():
    data = request.json
    paid = charge.s(data).on_error(apologize.s(data["customer"]))
    mailed = chain(paid, invoice.s(), send_mail.s(data["customer"])).delay()
    send_mail.apply_async(("how was it?", data["customer"]), countdown=TWO_WEEKS, expires=TWO_WEEKS + 86_400)
    return jsonify(task_id=mailed.id), 202


@app.post("/albums")
def album():
    data = request.json
    return jsonify(task_id=make_album(data["images"], 200, data["owner"]).id), 202


@app.post("/imports")
def start_import():
    return jsonify(task_id=import_products.delay(request.json).id), 202


@app.get("/tasks/<task_id>")
def show(task_id):
    result = AsyncResult(task_id, app=celery)
    return jsonify(state=result.state, result=str(result.result))


@app.delete("/tasks/<task_id>")
def cancel(task_id):
    celery.control.revoke(task_id, terminate=True)
    return "", 202
