"""SIP over UDP as a voice server speaks it: answers calls, counts them, and hangs up when it is ended.

As much of RFC 3261 as a called party needs. A call counts from its INVITE until either side's BYE, or until its caller has
not acknowledged the answer for half a minute. There is no sound: what is offered is declined politely in the SDP.
"""

import asyncio
import re
import secrets
import time

T1, T2 = 0.5, 4.0
"""Seconds: first and longest pause between two sendings of the same answer."""
GIVE_UP = 64 * T1
REMEMBER = 32.0
"""Seconds for which the answer to a request is kept, for when the request comes again."""
COMPACT = {"v": "via", "f": "from", "t": "to", "i": "call-id", "m": "contact", "l": "content-length", "k": "supported"}
REASONS = {
    200: "OK",
    400: "Bad Request",
    405: "Method Not Allowed",
    481: "Call/Transaction Does Not Exist",
    487: "Request Terminated",
    503: "Service Unavailable",
}


class Request:
    """One request: its method and its headers, in order, by their long names in lower case."""

    def __init__(self, text):
        head = text.split("\r\n\r\n", 1)[0]
        # A line that begins with a blank belongs to the one before it.
        lines = re.sub(r"\r\n[ \t]+", " ", head).split("\r\n")
        self.method, self.uri, version = lines[0].split(" ", 2)
        if version != "SIP/2.0":
            raise ValueError("no SIP request")
        self.headers = []
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon:
                raise ValueError("a header without a colon")
            name = name.strip().lower()
            self.headers.append((COMPACT.get(name, name), value.strip()))
        for needed in ("via", "from", "to", "call-id", "cseq"):
            self.one(needed)

    def all(self, name):
        return [value for have, value in self.headers if have == name]

    def one(self, name):
        values = self.all(name)
        if not values:
            raise ValueError(f"no {name}")
        return values[0]

    @property
    def branch(self):
        found = re.search(r";\s*branch=([^;,\s]+)", self.one("via"))
        return found.group(1) if found else self.one("via")

    @property
    def to_tag(self):
        found = re.search(r";\s*tag=([^;,\s]+)", self.one("to"))
        return found.group(1) if found else None


class Call:
    """One call, from our side."""

    def __init__(self, request, source, contact):
        self.id = request.one("call-id")
        self.tag = secrets.token_hex(6)
        self.source = source
        self.ours = f"{request.one('to')};tag={self.tag}"
        self.theirs = request.one("from")
        target = request.all("contact")
        self.target = re.sub(r"^[^<]*<([^>]*)>.*$", r"\1", target[0]) if target else request.uri
        self.route = request.all("record-route")
        self.contact = contact
        self.answer = b""
        self.resending = None

    def hang_up(self, address):
        """The BYE that ends it from our side."""
        lines = [
            f"BYE {self.target} SIP/2.0",
            f"Via: SIP/2.0/UDP {address};rport;branch=z9hG4bK{secrets.token_hex(8)}",
            "Max-Forwards: 70",
            *[f"Route: {route}" for route in self.route],
            f"From: {self.ours}",
            f"To: {self.theirs}",
            f"Call-ID: {self.id}",
            "CSeq: 1 BYE",
            "Content-Length: 0",
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Sip(asyncio.DatagramProtocol):
    """The calls of one server. `admit` takes one more call on or says no; `ended` is called once for each that was taken."""

    def __init__(self, address, admit, ended):
        self.address = address
        self.admit = admit
        self.ended = ended
        self.calls = {}
        self.answered = {}
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, source):
        # Keep-alives are blank lines; answers are those to our own BYE.
        if not data.strip() or data.startswith(b"SIP/2.0"):
            return
        try:
            request = Request(data.decode("utf-8", "replace"))
        except ValueError:
            return
        self.forget_old()
        key = (request.branch, request.method)
        if request.method != "ACK" and key in self.answered:
            self.transport.sendto(self.answered[key][1], source)
            return
        handle = getattr(self, f"on_{request.method.lower()}", self.on_other)
        answer = handle(request, source)
        if answer is not None:
            self.answered[key] = (time.monotonic(), answer)
            self.transport.sendto(answer, source)

    def forget_old(self):
        oldest = time.monotonic() - REMEMBER
        # In the order of their coming: only the first ones can be too old.
        while self.answered:
            key = next(iter(self.answered))
            if self.answered[key][0] > oldest:
                return
            del self.answered[key]

    def known(self, request):
        call = self.calls.get(request.one("call-id"))
        return call if call and request.to_tag == call.tag else None

    def on_invite(self, request, source):
        if request.to_tag:
            call = self.known(request)
            return self.reply(request, 200, call, sdp=True) if call else self.reply(request, 481)
        if not self.admit():
            return self.reply(request, 503, extra=["Retry-After: 5"])
        call = Call(request, source, f"<sip:{self.address}>")
        self.calls[call.id] = call
        call.answer = self.reply(request, 200, call, sdp=True)
        call.resending = asyncio.get_running_loop().create_task(self.resend(call))
        return call.answer

    async def resend(self, call):
        """Until the caller has acknowledged it; a caller who never does is taken to be gone."""
        pause, until = T1, time.monotonic() + GIVE_UP
        while time.monotonic() < until:
            await asyncio.sleep(pause)
            self.transport.sendto(call.answer, call.source)
            pause = min(2 * pause, T2)
        self.transport.sendto(call.hang_up(self.address), call.source)
        self.end(call)

    def on_ack(self, request, _source):
        call = self.known(request)
        if call and call.resending:
            call.resending.cancel()
            call.resending = None

    def on_bye(self, request, _source):
        call = self.known(request)
        if call is None:
            return self.reply(request, 481)
        self.end(call)
        return self.reply(request, 200)

    def on_cancel(self, request, _source):
        # Every call is answered at once, so there is never one left to be called off.
        return self.reply(request, 200 if request.one("call-id") in self.calls else 481)

    def on_options(self, request, _source):
        if request.to_tag and self.known(request) is None:
            return self.reply(request, 481)
        return self.reply(request, 200, extra=["Allow: INVITE, ACK, BYE, CANCEL, OPTIONS"])

    def on_other(self, request, _source):
        if request.to_tag:
            return self.reply(request, 200 if self.known(request) else 481)
        return self.reply(request, 405, extra=["Allow: INVITE, ACK, BYE, CANCEL, OPTIONS"])

    def end(self, call):
        if self.calls.pop(call.id, None) is None:
            return
        if call.resending and call.resending is not asyncio.current_task():
            call.resending.cancel()
        self.ended()

    def hang_up(self):
        """Tells every caller that the call is over."""
        for call in list(self.calls.values()):
            self.transport.sendto(call.hang_up(self.address), call.source)
            self.end(call)

    def reply(self, request, code, call=None, sdp=False, extra=()):
        to = request.one("to")
        if call is not None and not request.to_tag:
            to = call.ours
        elif not request.to_tag:
            to = f"{to};tag={secrets.token_hex(6)}"
        lines = [f"SIP/2.0 {code} {REASONS[code]}"]
        lines += [f"Via: {via}" for via in request.all("via")]
        lines += [f"Record-Route: {route}" for route in request.all("record-route")]
        lines += [f"From: {request.one('from')}", f"To: {to}", f"Call-ID: {request.one('call-id')}"]
        lines += [f"CSeq: {request.one('cseq')}", *extra]
        body = ""
        if sdp:
            host = self.address.rsplit(":", 1)[0].strip("[]")
            kind = "IP6" if ":" in host else "IP4"
            body = f"v=0\r\no=- 0 0 IN {kind} {host}\r\ns=-\r\nc=IN {kind} {host}\r\nt=0 0\r\nm=audio 9 RTP/AVP 0\r\na=inactive\r\n"
            lines += [f"Contact: {call.contact}", "Content-Type: application/sdp"]
        lines.append(f"Content-Length: {len(body)}")
        return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()
