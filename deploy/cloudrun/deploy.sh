#!/bin/bash
# Deploy the chatbot to Cloud Run and print the page's address; run it again after a change.
#   deploy/cloudrun/deploy.sh PROJECT REGION monolith|microservices
#
# Variables: DOCKER=podman builds with podman; BASE names another base image; CLOUDSQL=PROJECT:REGION:INSTANCE
# attaches a database of Cloud SQL; NETWORK=default closes the backend to the internet as well.
set -euo pipefail
cd "$(dirname "$0")/../.."

fail() {
    echo "deploy.sh: $*" >&2
    exit 1
}

[ $# -eq 3 ] || fail "give a project, a region and a shape: deploy/cloudrun/deploy.sh my-project europe-west1 microservices"
PROJECT=$1 REGION=$2 SHAPE=$3
DOCKER=${DOCKER:-docker} BASE=${BASE:-} CLOUDSQL=${CLOUDSQL:-} NETWORK=${NETWORK:-}
REGISTRY=$REGION-docker.pkg.dev
INGRESS=$([ -n "$NETWORK" ] && echo internal || echo all)

[[ $PROJECT =~ ^[a-z][a-z0-9-]+$ ]] || fail "'$PROJECT' is not the id of a project. See \`gcloud projects list\`."
[[ $REGION =~ ^[a-z]+-[a-z]+[0-9]+$ ]] || fail "'$REGION' is not a region. See \`gcloud run regions list\`."
[[ $SHAPE == monolith || $SHAPE == microservices ]] || fail "'$SHAPE' is not a shape. Say monolith or microservices."
[[ $CLOUDSQL =~ ^([a-z0-9:.-]*)$ ]] || fail "CLOUDSQL is not PROJECT:REGION:INSTANCE."
[[ $NETWORK =~ ^[a-z0-9-]*$ ]] || fail "NETWORK is not the name of a network."
command -v gcloud >/dev/null || fail "gcloud is not here. Install the Google Cloud CLI, then run \`gcloud auth login\`."
command -v "$DOCKER" >/dev/null || fail "$DOCKER is not here. Install Docker, or say DOCKER=podman."

google() { gcloud --project="$PROJECT" --quiet "$@"; }
here() { google "$@" >/dev/null 2>&1; }

account() { # NAME: a service account without rights
    local email=$1@$PROJECT.iam.gserviceaccount.com
    here iam service-accounts describe "$email" || google iam service-accounts create "$1"
}

may_read() { # NAME SECRET: let a service account read a secret
    google secrets add-iam-policy-binding "$2" --role=roles/secretmanager.secretAccessor \
        --member="serviceAccount:$1@$PROJECT.iam.gserviceaccount.com" >/dev/null
}

push() { # TARGET: build an image, push it, and set IMAGE to its digest
    local name=$REGISTRY/$PROJECT/chatbot/$1
    "$DOCKER" build --platform=linux/amd64 --file=deploy/Dockerfile --target="$1" --tag="$name" \
        ${BASE:+"--build-arg=BASE=$BASE"} .
    "$DOCKER" push "$name"
    IMAGE=$("$DOCKER" image inspect --format='{{index .RepoDigests 0}}' "$name")
}

replace() { # TARGET: deploy a service file
    local file drop=(-e '')
    [ -n "$DATABASE" ] || drop+=(-e '/# database$/d')
    [ -n "$CLOUDSQL" ] || drop+=(-e '/# cloudsql$/d')
    [ -n "$NETWORK" ] || drop+=(-e '/# network$/d')
    file=$WORK/$1.yaml
    sed "${drop[@]}" -e "s|\${PROJECT}|$PROJECT|g" -e "s|\${IMAGE}|$IMAGE|g" \
        -e "s|\${INGRESS}|$INGRESS|g" -e "s|\${NETWORK}|$NETWORK|g" -e "s|\${CLOUDSQL}|$CLOUDSQL|g" \
        -e "s|\${BACKEND_URL}|${BACKEND_URL:-}|g" "deploy/cloudrun/$1.yaml" >"$file"
    google run services replace "$file" --region="$REGION"
}

url() { google run services describe "$1" --region="$REGION" --format='value(status.url)'; }

page() { # TARGET: deploy a page, open to all
    account "chatbot-$1"
    [ -z "$DATABASE" ] || may_read "chatbot-$1" chatbot-database-url
    [ -z "$CLOUDSQL" ] || google projects add-iam-policy-binding "$PROJECT" --condition=None \
        --role=roles/cloudsql.client --member="serviceAccount:chatbot-$1@$PROJECT.iam.gserviceaccount.com" >/dev/null
    push "$1"
    replace "$1"
    google run services add-iam-policy-binding "chatbot-$1" --region="$REGION" \
        --role=roles/run.invoker --member=allUsers >/dev/null
}

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

google services enable run.googleapis.com artifactregistry.googleapis.com secretmanager.googleapis.com
here artifacts repositories describe chatbot --location="$REGION" ||
    google artifacts repositories create chatbot --location="$REGION" --repository-format=docker
google auth configure-docker "$REGISTRY"
DATABASE=$(here secrets describe chatbot-database-url && echo yes || true)

if [ "$SHAPE" = monolith ]; then
    page monolith
else
    here secrets describe chatbot-api-key ||
        head -c 48 /dev/urandom | base64 | tr -d '=+/\n' |
        google secrets create chatbot-api-key --data-file=-
    account chatbot-backend
    account chatbot-frontend
    may_read chatbot-backend chatbot-api-key
    may_read chatbot-frontend chatbot-api-key
    push backend
    replace backend
    # Only the front end: this takes the place of all that may have been allowed before.
    echo "{\"bindings\": [{\"role\": \"roles/run.invoker\", \"members\": [\"serviceAccount:chatbot-frontend@$PROJECT.iam.gserviceaccount.com\"]}]}" >"$WORK/policy.json"
    google run services set-iam-policy chatbot-backend "$WORK/policy.json" --region="$REGION" >/dev/null
    [ -z "$NETWORK" ] || google compute networks subnets update "$NETWORK" --region="$REGION" \
        --enable-private-ip-google-access
    BACKEND_URL=$(url chatbot-backend)
    page frontend
fi

[ -n "$DATABASE" ] || echo "Conversations are lost with the instance. To keep them, make the secret chatbot-database-url and run this again."
url "chatbot-$([ "$SHAPE" = monolith ] && echo monolith || echo frontend)"
