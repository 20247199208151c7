# Sourced by quickstart.sh and test.sh: makes .venv and installs the project into it.

find_python() {
  local python
  for python in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$python"
      return
    fi
  done
  echo "error: Python 3.11 or newer is needed; ${PYTHON:-python3} is" \
    "$("${PYTHON:-python3}" --version 2>&1 || echo 'not there'). PYTHON=/path/to/python names another." >&2
  return 1
}

# with_sign COMMAND ...: runs it, and shows the seconds that have gone by if stderr is a terminal
with_sign() {
  local clock= status=0
  if [ -t 2 ]; then
    (while sleep 1 && kill -0 $$ 2>/dev/null; do printf '\r%d:%02d ' $((SECONDS / 60)) $((SECONDS % 60)) >&2; done) &
    clock=$!
  fi
  "$@" || status=$?
  if [ -n "$clock" ]; then
    kill "$clock"
    wait "$clock" 2>/dev/null || true
    printf '\r        \r' >&2
  fi
  return $status
}

# install EXTRAS: the project in editable form with the pinned versions; skipped if nothing changed
install() {
  local python stamp want
  if [ ! -x .venv/bin/python ]; then
    python=$(find_python)
    echo "making .venv with $("$python" --version)"
    "$python" -m venv .venv || {
      echo "error: $python cannot make a virtual environment (on Debian: install python3-venv)" >&2
      return 1
    }
  fi
  stamp=.venv/.installed$1
  want=$(cat pyproject.toml constraints.txt | sha256sum)
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
    return
  fi
  echo "installing peft_lightning$1 into .venv (a few minutes the first time) ..."
  with_sign .venv/bin/python -m pip install -qq --disable-pip-version-check \
    --constraint constraints.txt --editable ".$1"
  echo "$want" > "$stamp"
}
