#!/usr/bin/env bash
# restartable.sh COMMAND...: runs a command that saves its work and ends with 0 when it gets SIGTERM, as
# `jukebox-jax train` does, and passes SIGTERM on to it. Ends with 143 then, so that a scheduler which starts failed
# jobs again does so; else with the command's own status: 0 means that there is nothing left to do.
set -u

stopped=
"$@" &
child=$!
trap 'stopped=yes; kill -TERM "$child" 2>/dev/null' TERM

# A trapped signal ends `wait` early: wait again until the command itself has ended.
while :; do
    wait "$child"
    status=$?
    kill -0 "$child" 2>/dev/null || break
done
if [[ -n $stopped && $status -eq 0 ]]; then
    exit 143
fi
exit "$status"
