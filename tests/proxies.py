"""Configurations of reverse proxies for tests. They are made from the files in config/."""

from __future__ import annotations

import re
from pathlib import Path

from tests.servers import self_signed

CONFIG = Path(__file__).parents[1] / "config"


def nginx_configuration(folder: Path, https: int, http: int, upstream: int) -> Path:
    """Return the file of a complete nginx configuration that contains config/nginx.conf, with the ports and paths of a test."""
    certificate = self_signed(folder, "127.0.0.1")
    site = (CONFIG / "nginx.conf").read_text()
    site = re.sub(r"/etc/letsencrypt\S+\.pem", str(certificate), site)
    site = site.replace("listen [::]:80;", "").replace("listen [::]:443 ssl http2;", "")
    site = site.replace("listen 80;", f"listen 127.0.0.1:{http};").replace("listen 443 ssl", f"listen 127.0.0.1:{https} ssl")
    site = site.replace("server 127.0.0.1:8000", f"server 127.0.0.1:{upstream}")
    paths = "".join(f"{name}_temp_path {folder}/{name}; " for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    file = folder / "nginx.conf"
    file.write_text(
        f"user {'root' if Path('/root').exists() else 'nobody'};\npid {folder}/pid;\nerror_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{ access_log off; {paths}\n{site}\n}}\n"
    )
    return file
