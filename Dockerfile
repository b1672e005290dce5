# Two stages: the first installs from the hashed lock, the second carries only the result and runs as nobody special.

FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/tollgate
COPY requirements.lock ./
RUN /opt/tollgate/bin/pip install --require-hashes --requirement requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY limits limits
COPY gateway gateway
COPY tollgate tollgate
# The build backend is in the lock, so this step downloads nothing.
RUN /opt/tollgate/bin/pip install --no-deps --no-build-isolation .

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/tollgate --create-home tollgate
COPY --from=build /opt/tollgate /opt/tollgate
COPY config.yaml config.schema.json /etc/tollgate/
ENV PATH=/opt/tollgate/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TOLLGATE_CONFIG=/etc/tollgate/config.yaml \
    TOLLGATE_DATA=/var/lib/tollgate
USER 10001:10001
WORKDIR /var/lib/tollgate
VOLUME /var/lib/tollgate
# Customers. Operators' listener stays on loopback until server.admin and server.admin_token say otherwise.
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
ENTRYPOINT ["tollgate"]
CMD ["serve", "--listen", "0.0.0.0:8080"]
