"""What an emulator of AWS lacks, for scripts/deploy-local: it keeps records of ECS tasks without running them, and the
host name of a distribution leads nowhere.

This program starts each task of the cluster as Fargate would: with the environment of its definition, the rights of its
role by credentials that are renewed, and SIGTERM at its end. And it answers on loopback what the distribution answers, as
if a browser had come by https.

It ends by SIGTERM or when the process that started it is gone, and leaves no task behind.
"""

import argparse
import http.client
import http.server
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
import urllib.parse

import boto3
import botocore.exceptions

HOP_BY_HOP = {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailers", "transfer-encoding", "upgrade"}

# The headers that a behaviour sets, whatever its origin answers.
POLICY = ("Access-Control-Allow-Origin", "Access-Control-Allow-Methods", "Access-Control-Allow-Headers", "Content-Security-Policy", "X-Content-Type-Options")


def edge(emulator, domain, bucket):
    """A handler that passes every request to the distribution.

    The emulator answers 403 for objects that are not there, although the distribution may list the bucket, by which AWS
    tells that they are missing. Of one that is there 403 stays 403. And it knows no origin groups: what the static
    catalogue lacks is asked of the API here, by an address that is the API's as it has one slash more than a behaviour.
    """
    at = urllib.parse.urlsplit(emulator)
    s3 = boto3.client("s3")

    def missing(path):
        key = re.sub("/+", "/", urllib.parse.unquote(path.split("?")[0])).lstrip("/")
        try:
            s3.head_object(Bucket=bucket, Key=key)
        except botocore.exceptions.ClientError as err:
            return err.response["ResponseMetadata"]["HTTPStatusCode"] == 404
        return False

    def ask(command, path, body, headers):
        """What the distribution answers: its status, headers, content and length."""
        upstream = http.client.HTTPConnection(at.hostname, at.port, timeout=60)
        try:
            upstream.request(command, path, body, headers)
            got = upstream.getresponse()
            content = got.read()
            length = got.headers.get("Content-Length") if command == "HEAD" else len(content)
            status = got.status
            if status == 403 and got.headers.get_content_type() == "application/xml" and missing(path):
                status, content = 404, content.replace(b"AccessDenied", b"NoSuchKey")
                length = len(content) if command != "HEAD" else length
            return status, got.headers, content, length
        finally:
            upstream.close()

    class Edge(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
            headers |= {"Host": domain, "X-Forwarded-Proto": "https"}
            try:
                status, got, content, length = ask(self.command, self.path, body, headers)
                if status in (403, 404) and self.command in ("GET", "HEAD") and re.match("/{1,2}json/", self.path):
                    status, more, content, length = ask(self.command, "///" + self.path.lstrip("/"), body, headers)
                    for name in POLICY:
                        del more[name]
                        if name in got:
                            more[name] = got[name]
                    got = more
                self.send_response_only(status)
                for name, value in got.items():
                    if name.lower() not in HOP_BY_HOP | {"content-length"}:
                        self.send_header(name, value)
                if length is not None:
                    self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(content)
            except OSError as err:
                self.close_connection = True
                print(f"edge: {self.command} {self.path}: {err}", file=sys.stderr)

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer

        def log_message(self, *_):
            pass

    return Edge


def credentials(sts, roles):
    """A handler that gives a task the credentials of its role, as the agent of ECS does. roles: token → role."""

    class Credentials(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            role = roles.get(self.headers.get("Authorization", ""))
            if role is None:
                self.send_error(403)
                return
            try:
                got = sts.assume_role(RoleArn=role, RoleSessionName="builder")["Credentials"]
            except botocore.exceptions.ClientError as err:
                print(f"credentials: {err}", file=sys.stderr, flush=True)
                self.send_error(500)
                return
            text = json.dumps({
                "AccessKeyId": got["AccessKeyId"], "SecretAccessKey": got["SecretAccessKey"], "Token": got["SessionToken"],
                "Expiration": got["Expiration"].strftime("%Y-%m-%dT%H:%M:%SZ"),
            }).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    return Credentials


def serve(port, handler):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


class Tasks:
    """The processes that stand for the tasks of a cluster."""

    def __init__(self, ecs, cluster, command, container, folder, region, emulator, roles, credentials_port):
        self.ecs, self.cluster, self.command, self.container, self.folder = ecs, cluster, command, container, folder
        self.region, self.emulator, self.roles, self.credentials_port = region, emulator, roles, credentials_port
        self.running = {}  # ARN → process
        self.ended = set()  # ARNs

    def look(self):
        """Starts what the cluster asks for, and tells it what has ended."""
        wanted = self.ecs.list_tasks(cluster=self.cluster, desiredStatus="RUNNING")["taskArns"]
        for arn in wanted:
            if arn not in self.running and arn not in self.ended:
                self.start(arn)
        for arn, process in list(self.running.items()):
            code = process.poll()
            if code is None:
                if arn not in wanted:
                    process.terminate()
                continue
            del self.running[arn]
            self.ended.add(arn)
            print(f"task {arn.rsplit('/')[-1]} ended with {code}", flush=True)
            if arn in wanted:
                self.ecs.stop_task(cluster=self.cluster, task=arn, reason=f"Essential container in task exited ({code})")

    def start(self, arn):
        name = arn.rsplit("/")[-1]
        task = self.ecs.describe_tasks(cluster=self.cluster, tasks=[arn])["tasks"][0]
        definition = self.ecs.describe_task_definition(taskDefinition=task["taskDefinitionArn"])["taskDefinition"]
        container = definition["containerDefinitions"][0]
        token = secrets.token_urlsafe()
        self.roles[token] = definition["taskRoleArn"]
        environment = {pair["name"]: pair["value"] for pair in container.get("environment", [])} | {
            "AWS_REGION": self.region,
            "AWS_ENDPOINT_URL": self.emulator,
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://127.0.0.1:{self.credentials_port}/",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": token,
            # All that a task has of ours: where programs are, and what the container engine needs.
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
        }
        scratch = os.path.join(self.folder, name)
        os.makedirs(os.path.join(scratch, "tmp"), exist_ok=True)
        if self.container:
            environment["NAME"] = "sysup-" + name
        else:
            environment |= {
                "SYSUP_DATA": os.path.join(scratch, "data"),
                "TMPDIR": os.path.join(scratch, "tmp"),
                "SYSUP_BUILD_UID": str(70000 + secrets.randbelow(20000)),  # no two workers of a machine share one
            }
        with open(os.path.join(scratch, "log"), "wb") as log:
            self.running[arn] = subprocess.Popen(
                self.command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        with open(os.path.join(scratch, "pid"), "w") as file:
            file.write(f"{self.running[arn].pid}\n")
        print(f"task {name} started, see {scratch}/log", flush=True)

    def end(self, seconds=20):
        for process in self.running.values():
            process.terminate()
        until = time.monotonic() + seconds
        for arn, process in self.running.items():
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                if self.container:
                    subprocess.run(["podman", "kill", "sysup-" + arn.rsplit("/")[-1]], check=False)
                process.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--domain", required=True, help="of the distribution")
    parser.add_argument("--bucket", required=True, help="behind it")
    parser.add_argument("--port", type=int, required=True, help="to answer on")
    parser.add_argument("--cluster", help="whose tasks are started; none without it")
    parser.add_argument("--folder", help="for the tasks' files")
    parser.add_argument("--container", action="store_true", help="the command is scripts/builder-run")
    parser.add_argument("command", nargs="*", help="that a task is")
    arguments = parser.parse_args()
    emulator, region = os.environ["AWS_ENDPOINT_URL"], os.environ["AWS_DEFAULT_REGION"]

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    serve(arguments.port, edge(emulator, arguments.domain, arguments.bucket))
    print("ready", flush=True)

    tasks = None
    if arguments.cluster:
        roles = {}
        port = serve(0, credentials(boto3.client("sts"), roles))
        tasks = Tasks(boto3.client("ecs"), arguments.cluster, arguments.command, arguments.container, arguments.folder, region, emulator, roles, port)
    parent = os.getppid()
    while not stop.wait(0.5) and os.getppid() == parent:
        try:
            if tasks:
                tasks.look()
        except Exception as err:  # the emulator may be busy; the next look is soon
            print(f"tasks: {err}", file=sys.stderr, flush=True)
    if tasks:
        tasks.end()


main()
