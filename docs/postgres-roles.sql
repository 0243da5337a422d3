-- Roles of PostgreSQL for the API, the workers and migrations, apart from each other.
-- Run once as a superuser in the database of the service, before `alembic upgrade head`:
--   psql -d lethe -f docs/postgres-roles.sql
-- then give the three logins their passwords (docs/deploy/postgres/passwords.sql), and set
-- LETHE_DATABASE_TENANT_ROLE=lethe_tenant for the API. Compose does all of it.

-- Owns the tables; runs migrations and nothing else.
create role lethe_owner login;
-- Bound by row-level security. The API takes it in every transaction on behalf of a caller.
create role lethe_tenant nologin;
-- Look keys up, ring for jobs and do them: across tenants, by their own statements.
create role lethe_api login bypassrls;
create role lethe_worker login bypassrls;
grant lethe_tenant to lethe_api;

grant usage, create on schema public to lethe_owner;
grant usage on schema public to lethe_tenant, lethe_api, lethe_worker;

-- What is there already, and what later migrations make. Tables that another role made are handed
-- over with: select format('alter table public.%I owner to lethe_owner', tablename)
--   from pg_tables where schemaname = 'public' \gexec
grant select, insert, update, delete on all tables in schema public
  to lethe_tenant, lethe_api, lethe_worker;
alter default privileges for role lethe_owner in schema public
  grant select, insert, update, delete on tables to lethe_tenant, lethe_api, lethe_worker;
