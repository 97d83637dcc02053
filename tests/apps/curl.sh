#!/bin/sh
# curl and sed; a login for every call.
set -eu
statuses=
for _ in $(seq "$CALLS"); do
  body=$(curl -sS -w '\n%{http_code}' -H "accountId: $NOMBA_ACCOUNT_ID" \
    -d "{\"grant_type\":\"client_credentials\",\"client_id\":\"$NOMBA_CLIENT_ID\",\"client_secret\":\"$NOMBA_CLIENT_SECRET\"}" \
    "$NOMBA_BASE_URL/v1/auth/token/issue")
  statuses="$statuses,$(echo "$body" | tail -1)"
  token=$(echo "$body" | sed -n 's/.*"access_token":"\([^"]*\)".*/\1/p')
  statuses="$statuses,$(curl -sS -o /dev/null -w '%{http_code}' \
    -H "Authorization: Bearer $token" "$NOMBA_BASE_URL/v1/accounts/balance")"
  sleep "${PAUSE:-0}"
done
echo "[${statuses#,}]"
