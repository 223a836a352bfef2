"""An RTSP server of GStreamer's, 25 red frames a second, for who knows the password.

    /usr/bin/python3 runtime/tests/rtsp_server.py PORT

With Debian's gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-good and -bad, and python3-gi. It
prints the paths that it serves, one a line, and then "ready".
"""

import sys

import gi  # type: ignore[import-not-found]

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # type: ignore[import-not-found]  # noqa: E402

USER, PASSWORD = "user", "secret"
CODECS = {"h264": ("openh264enc gop-size=10", "rtph264pay"), "jpeg": ("jpegenc", "rtpjpegpay")}
PICTURES = (
    "videotestsrc is-live=true pattern=red"
    " ! video/x-raw,format=I420,width=320,height=240,framerate=25/1"
)


def main() -> None:
    """Serve until killed."""
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(sys.argv[1])
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", USER)
    auth = GstRtspServer.RTSPAuth()
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(USER, PASSWORD), token)
    server.set_auth(auth)
    for name, (encoder, payload) in CODECS.items():
        if Gst.ElementFactory.find(encoder.partition(" ")[0]) is None:
            continue
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(f"( {PICTURES} ! {encoder} ! {payload} name=pay0 )")
        allowed = GstRtspServer.RTSPPermissions()
        allowed.add_permission_for_role(USER, "media.factory.access", True)
        allowed.add_permission_for_role(USER, "media.factory.construct", True)
        factory.set_permissions(allowed)
        server.get_mount_points().add_factory(f"/{name}", factory)
        sys.stdout.write(f"{name}\n")
    server.attach(None)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
