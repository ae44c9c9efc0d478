#!/bin/bash
# What the console refuses, whoever asks, and how it answers. Runs beside the daemon. usage: door.sh TOKEN-FILE
set -euo pipefail
url=http://127.0.0.1:9181
token=$(<"$1")
order='{"verb": "bandwidth", "gateway": "gateway", "bps": 10000000, "save": false}'

expect() { # CODE WHAT CURL-ARGUMENT...
    local code=$1 what=$2 got
    shift 2
    got=$(curl -s -o /dev/null -w '%{http_code}' --max-time 20 "$@")
    if [[ $got != "$code" ]]; then
        echo "FAILED: $what: $got instead of $code" >&2
        exit 1
    fi
}

expect 200 "the page" "$url/"
expect 403 "another name" -H 'Host: evil.example' "$url/"
expect 403 "a page of another site" -H 'Origin: http://evil.example' "$url/api/events"
expect 403 "a script of another site" -H 'Sec-Fetch-Site: cross-site' "$url/api/events"
expect 404 "no such page" "$url/etc/passwd"
expect 405 "another method" -X DELETE "$url/"
expect 400 "a question without a name" "$url/api/rates"
expect 404 "rates of nothing" "$url/api/rates?tunnel=nobody"
expect 404 "a tunnel that is not there" "$url/api/tunnel?name=nobody"
expect 401 "a change without a token" -d "$order" "$url/api/order"
expect 401 "a change with a wrong token" -H 'Authorization: Bearer 0123456789abcdef' -d "$order" "$url/api/order"
expect 403 "a change from another site" -H 'Origin: http://evil.example' -H "Authorization: Bearer $token" -d "$order" "$url/api/order"
with=(-H "Authorization: Bearer $token")
expect 400 "no order" "${with[@]}" -d '{' "$url/api/order"
expect 400 "a level without a rate, which is no order for none" "${with[@]}" -d "${order/\"bps\": 10000000, /}" "$url/api/order"
expect 405 "an order that is none" "$url/api/order"
expect 400 "a verb that is not the console's" "${with[@]}" -d '{"verb": "handover"}' "$url/api/order"
expect 400 "an order that is too long" "${with[@]}" -d "$(printf '%0100000d' 0)" "$url/api/order"
expect 404 "a gateway that is not there" "${with[@]}" -d "${order/\"gateway\": \"gateway\"/\"gateway\": \"nobody\"}" "$url/api/order"
expect 200 "a change" "${with[@]}" -d "$order" "$url/api/order"
for header in "content-security-policy: default-src 'none'" 'x-frame-options: DENY' 'x-content-type-options: nosniff' 'cache-control: no-store'; do
    if ! curl -s -o /dev/null -D - "$url/" | grep -qi "^$header"; then
        echo "FAILED: no header $header" >&2
        exit 1
    fi
done
if grep -rqE 'https?://' <(for file in / /console.js /console.css /chart.js /table.js /text.js; do curl -s "$url$file"; done); then
    echo "FAILED: a page names something elsewhere" >&2
    exit 1
fi
