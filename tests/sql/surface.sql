-- What the extension adds to a database.
SELECT pg_describe_object(classid, objid, 0) AS object FROM pg_depend
WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e' AND classid <> 'pg_type'::regclass
  AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'ner_retriever')
ORDER BY pg_describe_object(classid, objid, 0) COLLATE "C";
\df ner_*

-- Volatility, parallel safety, cost and rows tell the planner how often it may call a model.
select oid::regprocedure::text as function, provolatile as volatility, proparallel as parallel,
       proisstrict as strict, procost as cost, prorows as rows, prosecdef as definer
from pg_proc where proname like 'ner\_%' order by function;

select oid::regprocedure::text as function, obj_description(oid, 'pg_proc') as comment
from pg_proc where proname like 'ner\_%' order by function;

-- Nobody needs a privilege to call them.
select bool_and(has_function_privilege('public', oid, 'execute')) as for_everyone
from pg_proc where proname like 'ner\_%';

-- The settings, of which one is a session's own.
load 'ner_retriever';
select name, setting, unit, context, vartype from pg_settings
where name like 'ner\_retriever.%' order by name;
select name, short_desc, extra_desc from pg_settings
where name like 'ner\_retriever.%' order by name;

-- Names that are not settings are refused.
set ner_retriever.modle = 'x';
set ner_retriever.batch_tokens = 100;
set ner_retriever.request_timeout = '2min';
show ner_retriever.request_timeout;

-- It can be dropped and created again, together with what it needs.
create database another;
\connect another
create extension ner_retriever;
create extension ner_retriever cascade;
create table entities (name text, embedding vector);
insert into entities select 'nothing', ner_type_embedding(null);
drop extension vector;
drop extension ner_retriever;
select * from entities;
create extension ner_retriever;
select ner_type_embedding(null) is null as works;
