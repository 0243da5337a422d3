-- Passwords of the logins of docs/postgres-roles.sql, from the environment of psql (14 or newer):
--   psql -v ON_ERROR_STOP=1 -d lethe -f docs/deploy/postgres/passwords.sql
-- A variable that is missing is an error.
\getenv owner_password POSTGRES_OWNER_PASSWORD
\getenv api_password POSTGRES_API_PASSWORD
\getenv worker_password POSTGRES_WORKER_PASSWORD
alter role lethe_owner password :'owner_password';
alter role lethe_api password :'api_password';
alter role lethe_worker password :'worker_password';
