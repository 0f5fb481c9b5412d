#!/bin/sh
# Makes the secrets of docker-compose.yml, once: files that exist are left as they are.
set -eu
cd "$(dirname "$0")"
mkdir -p secrets
chmod 700 secrets # the files in it are for uid 10001 of the containers, and Docker keeps their mode

random() { # $1 base32 characters, 5 bits each
    LC_ALL=C tr -dc 'a-z2-7' </dev/urandom | head -c "$1"
}

make() { # $1 name, $2 content
    if [ -e "secrets/$1" ]; then
        echo "secrets/$1 exists"
    else
        (umask 022 && printf '%s\n' "$2" >"secrets/.$1.new" && mv "secrets/.$1.new" "secrets/$1")
        echo "secrets/$1 made"
    fi
}

make secret_key "$(random 64)"
make admin_key "dk_$(random 40)"
make openai_api_key "${OPENAI_API_KEY:-}"
